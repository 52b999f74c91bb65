"""Write annotations of another layout as a COCO file; images are neither copied nor moved.

    python tools/to_coco.py my_data -o out.json

Accepts every layout that train.py accepts. COCO files are repaired, and difficult objects of Pascal VOC become crowds.
One split gives out.json, several give out_train.json, out_val.json and so on.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files.atomic_files import refuse_overwriting, write_atomically  # noqa: E402 (the path comes first)
from dataset_files.coco_index import AS_WRITTEN, CocoIndex  # noqa: E402
from dataset_files.conversion import SplitFiles  # noqa: E402
from dataset_files.conversion_store import open_split_index  # noqa: E402
from dataset_files.layouts.find import find_layout  # noqa: E402
from train_utils.errors import InputError, one_line_errors, reading_input, warn, writing_output  # noqa: E402


def main(source: Path, output: Path, class_attribute: str | None, skip_bad: bool) -> None:
    with reading_input():
        splits = find_splits(source, class_attribute)
        paths = [output.with_stem(f"{output.stem}_{s.name}") if len(splits) > 1 else output for s in splits]
        refuse_overwriting([source, *(file for s in splits for _, file in s.files())], paths)
        contents = [convert(split, skip_bad) for split in splits]
    for path, split, content in zip(paths, splits, contents):
        with writing_output():
            write_atomically(path, json.dumps(content))
        print(f"{path}: {in_words(content)}; its images: --image-folder {split.image_folder}")


def find_splits(source: Path, class_attribute: str | None) -> list[SplitFiles]:
    """Return the splits of a folder or file of any layout.

    Raises:
        FileNotFoundError, ValueError: the source is missing, or its layout is unknown.
    """
    return find_layout(source, class_attribute).splits


def convert(split: SplitFiles, skip_bad: bool) -> dict:
    """Return a split as the content of a COCO file, and warn about repaired and dropped annotations.

    Raises:
        ValueError: some annotations are invalid, unless `skip_bad` drops them.
    """
    if split.convert is not None:
        converted = split.convert()
        content, problems = converted.content, converted.problems
        problems.update(split.problems)
    else:
        opened = open_split_index(split, AS_WRITTEN)
        content, problems = json.loads(opened.index.path.read_text(encoding="utf-8-sig")), opened.problems
        if problems.wrong():
            content |= valid_content(opened.index)
    if problems.unskippable() or problems.wrong() and not skip_bad:
        remedy = "" if problems.unskippable() else "; --skip-bad leaves these out"
        raise ValueError(f"{split.source}: {problems.summary()}{remedy}")
    for kind in (*problems.wrong(), *problems.harmless()):
        warn(f"{split.source}: {problems.describe(kind)}")
    return content


def valid_content(index: CocoIndex) -> dict:
    """Return the valid images, annotations and categories of a COCO file."""
    columns = zip(index.image_ids.tolist(), index.file_names.tolist(), index.sizes.tolist())
    return {
        "images": [{"id": i, "file_name": name, "height": h, "width": w} for i, name, (h, w) in columns],
        "annotations": [a for i in range(len(index.image_ids)) for a in index.annotations(i, only_usable=False)],
        "categories": [{"id": i, "name": name} for i, name in index.categories.items()],
    }


def in_words(content: dict) -> str:
    """Describe the size of a COCO file in words."""
    names = ", ".join(category["name"] for category in content["categories"])
    return f"{len(content['images'])} images, {len(content['annotations'])} objects of {names or 'no class'}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder of the data, or its YAML or VIA JSON file")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="the COCO file to write; several splits add their names to it"
    )
    parser.add_argument("--class-attribute", metavar="NAME", help="VIA: region attribute with the class")
    parser.add_argument("--skip-bad", action="store_true", help="drop invalid annotations instead of stopping")
    args = parser.parse_args()
    with one_line_errors():
        if args.output.suffix.lower() != ".json":
            raise InputError(f"{args.output}: expected a name such as out.json")
        main(args.source, args.output, args.class_attribute, args.skip_bad)
