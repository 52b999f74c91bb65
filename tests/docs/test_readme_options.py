"""Every option that a README names exists, and every script named there is there."""

import ast
import re

import pytest

from tests.helpers.project import ROOT
from tools.inspect_dataset import ReportSettings
from train_utils.options import PredictSettings, TrainSettings, ValidationSettings

OPTION = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
COMMAND = re.compile(r"\b(?:python|torchrun)\b[^\n`]*?\b((?:[a-z_]+/)?\w+\.py)\b")
# Options of other programs, in the commands that start this project's scripts.
FOREIGN = {
    "torchrun": "--nproc_per_node --nnodes --max-restarts --rdzv-id --rdzv-backend --rdzv-endpoint --rdzv-conf "
    "--signals-to-handle --shutdown-timeout",
    "labelme": "--labels --nodata",
    "tensorboard": "--logdir",
    "sbatch": "--nodes --ntasks-per-node --gpus-per-node --cpus-per-task --time --signal --requeue --open-mode",
}
READMES = ["README.md", "README.zh-CN.md"]


def options_of_scripts() -> set[str]:
    parsers = [TrainSettings.parser("", multi_gpu=flag) for flag in (False, True)]
    parsers += [settings.parser("") for settings in (ValidationSettings, PredictSettings, ReportSettings)]
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


def options_of_programs() -> set[str]:
    """The options that the tools, the benchmarks and the programs of the tests declare in their code."""
    found = set()
    for folder in ("tools", "benchmarks", "tests/programs"):
        for file in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and called_name(node) in ("add_argument", "add_flag"):
                    words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                    found |= {word for word in words if isinstance(word, str) and word.startswith("--")}
    return found


def called_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def unknown_options(text: str) -> list[str]:
    foreign = set(" ".join(FOREIGN.values()).split())
    known = {name.replace("_", "-") for name in options_of_scripts() | options_of_programs() | foreign}
    return sorted({name for name in OPTION.findall(text) if name.replace("_", "-") not in known})


@pytest.mark.parametrize("readme", READMES)
def test_every_option_of_the_readme_exists(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert len(set(OPTION.findall(text))) > 40
    assert unknown_options(text) == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/OWN_DATA.md"])
def test_every_option_of_the_other_pages_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert OPTION.findall(text) and unknown_options(text) == []


@pytest.mark.parametrize("readme", READMES)
def test_every_script_of_the_readme_exists(readme: str) -> None:
    scripts = set(COMMAND.findall((ROOT / readme).read_text(encoding="utf-8")))
    assert {"train.py", "predict.py", "validation.py"} <= scripts
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []


@pytest.mark.parametrize("readme", READMES)
def test_every_foreign_option_is_in_the_readme(readme: str) -> None:
    """Else the list would hide an option that the scripts no longer have."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert [name for names in FOREIGN.values() for name in names.split() if name not in text] == []
    assert not set(" ".join(FOREIGN.values()).split()) & options_of_scripts()


def test_an_unknown_option_is_found() -> None:
    assert unknown_options("`--no-such-thing 3`, --data-path and --data_path") == ["--no-such-thing"]
