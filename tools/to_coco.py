"""Write annotations of another layout as a COCO file. Image files are neither copied nor moved.

    python tools/to_coco.py my_data -o out.json

Accepts every layout that train.py accepts. COCO files are repaired, and difficult objects of Pascal VOC become crowds.
One split gives out.json, several give out_train.json, out_val.json and so on. Images that exist only inside labelme's
JSON files are written to out_images/, beside links to all other images.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files.atomic_files import link_atomically, refuse_overwriting, replacing, write_atomically
from dataset_files.coco_index import AS_WRITTEN, CocoIndex
from dataset_files.conversion_store import SplitFiles, open_split_index
from dataset_files.layouts.find import find_layout
from dataset_files.problems import printable
from dataset_files.stored_images import embedded_image, open_image
from train_utils.errors import InputError, one_line_errors, reading_input, warn, writing_output


def main(source: Path, output: Path, class_attribute: str | None, skip_bad: bool) -> None:
    if output.suffix.lower() != ".json":
        raise InputError(f"{output}: expected a name such as out.json")
    with reading_input():
        splits = find_layout(source, class_attribute).splits
        paths = [output.with_stem(f"{output.stem}_{s.name}") if len(splits) > 1 else output for s in splits]
        contents = [convert(split, skip_bad) for split in splits]
        folders, images = [], []
        for path, split, content in zip(paths, splits, contents):
            has_embedded = any(is_embedded(Path(image["file_name"])) for image in content["images"])
            folders.append(path.with_name(f"{path.stem}_images") if has_embedded else split.image_folder)
            images.append(images_to_write(content, split.image_folder, folders[-1]) if has_embedded else [])
        written = [folder for folder, split in zip(folders, splits) if folder != split.image_folder]
        refuse_overwriting([source, *(file for s in splits for _, file in s.files())], paths, written)
    for path, content, folder, pairs in zip(paths, contents, folders, images):
        with writing_output():
            for image, target in pairs:
                write_image(image, target)
            write_atomically(path, json.dumps(content))
        names = ", ".join(category["name"] for category in content["categories"]) or "no class"
        counts = f"{len(content['images'])} images, {len(content['annotations'])} objects of {names}"
        print(printable(f"{path}: {counts}; its images: --image-folder {folder}"))


def convert(split: SplitFiles, skip_bad: bool) -> dict:
    """Convert a split to the content of a COCO file. ValueError for invalid items, unless `skip_bad` can drop them."""
    if split.convert is not None:
        converted = split.convert()
        content, problems = converted.content, converted.problems
        problems.update(split.problems)
    else:
        opened = open_split_index(split, AS_WRITTEN)
        content, problems = json.loads(opened.index.path.read_text(encoding="utf-8-sig")), opened.problems
        if problems.wrong():
            content |= valid_content(opened.index)
    if problems.blocking(skip_bad):
        remedy = "" if problems.blocking(skip_bad=True) else "; --skip-bad leaves these out"
        raise ValueError(f"{split.source}: {problems.summary()}{remedy}")
    for kind in (*problems.wrong(), *problems.harmless()):
        warn(f"{split.source}: {problems.describe(kind)}")
    return content


def valid_content(index: CocoIndex) -> dict:
    images = zip(index.image_ids.tolist(), index.file_names.tolist(), index.sizes.tolist())
    return {
        "images": [{"id": i, "file_name": name, "height": h, "width": w} for i, name, (h, w) in images],
        "annotations": [a for i in range(len(index.image_ids)) for a in index.annotations(i, only_usable=False)],
        "categories": [{"id": i, "name": name} for i, name in index.categories.items()],
    }


def images_to_write(content: dict, source: Path, folder: Path) -> list[tuple[Path, Path]]:
    """Return each image's current path and its new path in `folder`. Rename embedded images in `content`.

    Raises:
        ValueError: a different image exists at one of the new paths.
    """
    pairs = []
    taken = {image["file_name"] for image in content["images"]}
    for image in content["images"]:
        path = source / image["file_name"]
        if is_embedded(path):
            with open_image(path) as opened:
                suffix = ".jpg" if opened.format == "JPEG" else f".{str(opened.format).lower()}"
            short = image["file_name"][: -len(".json")] + suffix
            image["file_name"] = short if short not in taken else image["file_name"] + suffix
        target = folder / image["file_name"]
        if target.is_file() and target.read_bytes() != bytes_of(path):
            raise ValueError(f"{target}: exists, and is another image; move it away, or give another output")
        pairs.append((path, target))
    return pairs


def is_embedded(path: Path) -> bool:
    """Return whether an image exists only inside a JSON file of labelme."""
    return path.suffix.lower() == ".json"


def bytes_of(path: Path) -> bytes:
    return embedded_image(path) if is_embedded(path) else path.read_bytes()


def write_image(path: Path, target: Path) -> None:
    """Write an image that is embedded in JSON to `target`, or make `target` a link to an image that is a file."""
    if not is_embedded(path):
        link_atomically(path.resolve(), target)
        return
    with replacing(target) as file:
        file.write(bytes_of(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder of the data, or its YAML or VIA JSON file")
    help_output = "the COCO file to write; several splits add their names to it"
    parser.add_argument("-o", "--output", type=Path, required=True, help=help_output)
    parser.add_argument("--class-attribute", metavar="NAME", help="VIA: region attribute with the class")
    parser.add_argument("--skip-bad", action="store_true", help="drop invalid annotations instead of stopping")
    with one_line_errors():
        args = parser.parse_args()
        main(args.source, args.output, args.class_attribute, args.skip_bad)
