"""Compare augmented photos with what numpy makes of full planes, bit by bit, over many random draws.

    python -m tests.programs.augmentations                              # 1,000 draws of each: half an hour
    python -m tests.programs.augmentations --draws 100 --only lsj

The photos are coco_tiny's (tests/README.md says where). Masks must be equal to the bit: for flips and crops to the
flipped and cropped planes, for scales to nearest neighbour. Boxes must be the extents of the masks; objects, labels and
crowd flags those that the oracle keeps. The exit status is 1 if anything differs.
"""

import argparse
import sys

from my_dataset_coco import CocoDetection
from tests.helpers.augmentation_oracle import AUGMENTATIONS, compare, compare_copy_paste
from tests.helpers.project import real_data

COPY_PASTE, BATCH = "lsj and copy-paste", 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*AUGMENTATIONS, COPY_PASTE]
    parser.add_argument("--draws", type=int, default=1000, help="of each augmentation (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    folder = real_data()
    if folder is None or not (folder / "coco_tiny").is_dir():
        print("error: no folder coco_tiny; set MASKRCNN_TEST_DATA to the folder that holds it", file=sys.stderr)
        return 2
    photos = CocoDetection(folder / "coco_tiny", "train")
    print("| augmentation | draws | objects in them | draws that differ |\n| --- | ---: | ---: | ---: |")
    all_same = True
    for name in args.only:
        step = BATCH if name == COPY_PASTE else 1
        objects, wrong = 0, []
        for seed in range(-(-args.draws // step)):
            items = [photos[(step * seed + i) % len(photos)] for i in range(step)]
            objects += sum(len(target["labels"]) for _, target in items)
            found = compare_copy_paste(items, seed) if name == COPY_PASTE else compare(name, *items[0], seed)
            wrong += [f"seed {seed}: {', '.join(found)}"] if found else []
        print(f"| {name} | {(seed + 1) * step} | {objects} | {len(wrong)} |", flush=True)
        all_same &= not wrong
        if wrong:
            print(f"{name}: {'; '.join(wrong[:3])}", file=sys.stderr)
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
