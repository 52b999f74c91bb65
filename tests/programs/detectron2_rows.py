"""Print how far this project is from Detectron2's stored outputs for three photos, stage by stage.

    python -m tests.programs.detectron2_rows

Needs the folder detectron2_zoo of the real photos (tests/README.md).
"""

import sys

from tests.helpers.detectron2_rows import rows
from tests.helpers.project import real_data


def main() -> int:
    folder = real_data()
    if folder is None or not (folder / "detectron2_zoo").is_dir():
        print("error: no folder detectron2_zoo; set MASKRCNN_TEST_DATA to the folder that holds it", file=sys.stderr)
        return 2
    for row in rows(folder / "detectron2_zoo"):
        print(f"{row.stage:<14} {row.what:<41} {row.count:>6} {row.absolute:10.1e} {row.relative:10.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
