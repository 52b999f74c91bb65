"""Write annotations of another layout as a COCO file; images are neither copied nor moved.

    python tools/to_coco.py my_data -o out.json

Opens every layout that train.py opens; COCO files are written as they are repaired, Pascal VOC with difficult
objects as crowds. One split gives out.json, several give out_train.json, out_val.json and so on.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files.atomic_files import write_atomically  # noqa: E402 (the path comes first)
from dataset_files.coco_index import AS_WRITTEN  # noqa: E402
from dataset_files.conversion import Converted, SplitFiles  # noqa: E402
from dataset_files.conversion_store import open_split_index  # noqa: E402
from dataset_files.layouts.find import find_layout  # noqa: E402
from train_utils.errors import InputError, one_line_errors, reading_input  # noqa: E402


def main(source: Path, output: Path, class_attribute: str | None, skip_bad: bool) -> None:
    with reading_input():
        splits = find_splits(source, class_attribute)
        converted = [convert(split) for split in splits]
        for split, one in zip(splits, converted):
            report_problems(split, one, skip_bad)
        for split, one in zip(splits, converted):
            path = output.with_stem(f"{output.stem}_{split.name}") if len(splits) > 1 else output
            write_atomically(path, json.dumps(one.content))
            print(f"{path}: {in_words(one.content)}; its images: --image-folder {split.image_folder}")


def find_splits(source: Path, class_attribute: str | None) -> list[SplitFiles]:
    """The splits of a folder or file in whichever layout it has.

    Raises:
        FileNotFoundError, ValueError: it is missing, or has no known layout.
    """
    return find_layout(source, class_attribute).splits


def convert(split: SplitFiles) -> Converted:
    """A split's content; of a COCO file as it is repaired."""
    if split.convert is not None:
        return split.convert()
    opened = open_split_index(split, AS_WRITTEN)
    return Converted(json.loads(opened.index.path.read_text(encoding="utf-8-sig")), opened.problems)


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
