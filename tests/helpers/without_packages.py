"""Run a script as if packages were not installed: python -m tests.helpers.without_packages torch,tqdm SCRIPT ARGUMENTS.

On its last line on stdout the process prints which of the packages it has imported all the same.
"""

import runpy
import sys
from importlib.abc import MetaPathFinder


class Missing(MetaPathFinder):
    """Refuses to find some packages, as Python does where they are not installed."""

    def __init__(self, packages: list[str]):
        self.packages = packages

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


if __name__ == "__main__":
    packages = sys.argv[1].split(",")
    sys.argv = sys.argv[2:]
    sys.meta_path.insert(0, Missing(packages))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        print("imported:", *[name for name in packages if name in sys.modules])
