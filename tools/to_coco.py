"""Write annotations of another layout as a COCO file; images are neither copied nor moved.

    python tools/to_coco.py my_data -o out.json

Opens folders of labelme, YOLO segmentation, VIA, VOC-like folders and masks drawn as images. One split gives out.json,
several give out_train.json, out_val.json and so on.
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files.atomic_files import write_atomically  # noqa: E402
from dataset_files.layouts import labelme_files, mask_folders, via_files, voc_variants, yolo_files  # noqa: E402 (path first)
from dataset_files.layouts.conversion import Converted, SplitFiles  # noqa: E402
from train_utils.errors import InputError, one_line_errors, reading_input  # noqa: E402

KNOWN = "labelme, YOLO segmentation (a .yaml with names), VIA, VOC-like folders, images/ with masks/"


def main(source: Path, output: Path, class_attribute: str | None, skip_bad: bool) -> None:
    with reading_input():
        splits = find_splits(source, class_attribute)
        converted = [split.convert() for split in splits]
        for split, one in zip(splits, converted):
            report_problems(split, one, skip_bad)
        for split, one in zip(splits, converted):
            path = output.with_stem(f"{output.stem}_{split.name}") if len(splits) > 1 else output
            write_atomically(path, json.dumps(one.content))
            print(f"{path}: {in_words(one.content)}; its images: --image-folder {split.image_folder}")


def find_splits(source: Path, class_attribute: str | None) -> list[SplitFiles]:
    """The splits of a folder or file in whichever layout it has.

    Raises:
        ValueError: it has none that is known, or not this one's files.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: not found")
    via = via_files.find(source, class_attribute)
    if class_attribute is not None and not via:
        raise ValueError(f"{source}: --class-attribute is for VIA's files, and there is none")
    if via:
        return via
    for reader in (voc_variants, yolo_files, labelme_files, mask_folders):
        if source.is_dir() or reader is yolo_files:
            if splits := reader.find(source):
                return splits
    raise ValueError(f"{source}: none of the layouts that this tool knows: {KNOWN}")


def report_problems(split: SplitFiles, converted: Converted, skip_bad: bool) -> None:
    """Warn of what was repaired or left out; ValueError for what would be wrong, unless that is to be left out."""
    problems = converted.problems
    if problems.wrong() and not skip_bad:
        raise ValueError(f"{split.source}: {problems.summary()}; --skip-bad leaves these out")
    for kind in (*problems.wrong(), *problems.harmless()):
        print(f"{split.source}: {problems.in_words(kind)}", file=sys.stderr)


def in_words(content: dict) -> str:
    """How much is in a COCO file."""
    names = ", ".join(category["name"] for category in content["categories"])
    return f"{len(content['images'])} images, {len(content['annotations'])} objects of {names or 'no class'}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder of the data, or its YAML or VIA JSON file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the COCO file to write, or its name's start")
    parser.add_argument("--class-attribute", metavar="NAME", help="VIA: the region attribute that is the class")
    parser.add_argument("--skip-bad", action="store_true", help="leave out what would be wrong instead of stopping")
    args = parser.parse_args()
    with one_line_errors():
        if args.output.suffix.lower() != ".json":
            raise InputError(f"{args.output}: expected a name such as out.json")
        main(args.source, args.output, args.class_attribute, args.skip_bad)
