"""Every option, script and page that the READMEs and the pages for users name exists."""

import ast
import functools
import re

import pytest

from prediction.options import PredictSettings
from tests.helpers.project import ROOT
from tools.inspect_dataset import ReportSettings
from tools.predict_onnx import OnnxSettings
from train_utils.options import TrainSettings, ValidationSettings

OPTION = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
COMMAND = re.compile(r"\b(?:python|torchrun)\b[^\n`]*?\b((?:[a-z_]+/)?\w+\.py)\b")
# Options of other programs, in the commands that start this project's scripts.
FOREIGN = {
    "torchrun": "--nproc_per_node --nnodes --max-restarts --rdzv-id --rdzv-backend --rdzv-endpoint --rdzv-conf "
    "--signals-to-handle --shutdown-timeout",
    "labelme": "--labels --nodata",
    "tensorboard": "--logdir",
    "docker, pip, tritonserver": "--rm --no-cache-dir --model-repository",
    "sbatch": "--nodes --ntasks-per-node --gpus-per-node --cpus-per-task --time --signal --requeue --open-mode",
}
SETTINGS = TrainSettings, ValidationSettings, PredictSettings, ReportSettings, OnnxSettings
READMES = ["README.md", "README.zh-CN.md"]
PAGES = ["TRAINING", "MANY_MACHINES", "WEIGHTS", "VALIDATION", "PREDICTION", "ONNX", "OWN_DATA", "GUIDE.zh-CN"]
USER_PAGES = [*READMES, "CONTRIBUTING.md", *(f"docs/{page}.md" for page in PAGES)]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


@functools.cache
def options_of_scripts() -> set[str]:
    parsers = [each.parser("") for each in SETTINGS]
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


@functools.cache
def options_of_programs() -> set[str]:
    """The options that the tools, the benchmarks, the programs of the tests and the demo's data declare in code."""
    found = set()
    for files in ("tools/*.py", "benchmarks/*.py", "tests/programs/*.py", "train_utils/demo_dataset.py"):
        for file in ROOT.glob(files):
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


@pytest.mark.parametrize("page", USER_PAGES)
def test_every_option_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert OPTION.findall(text) and unknown_options(text) == []


@pytest.mark.parametrize("page", ["docs/TRAINING.md", "docs/GUIDE.zh-CN.md"])
def test_most_options_of_training_are_explained(page: str) -> None:
    assert len(set(OPTION.findall((ROOT / page).read_text(encoding="utf-8")))) > 40


@pytest.mark.parametrize("page", [*USER_PAGES, *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))])
def test_every_link_leads_to_a_file(page: str) -> None:
    links = LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("readme", READMES)
def test_the_readme_is_short(readme: str) -> None:
    assert (ROOT / readme).stat().st_size <= 14 * 1024


@pytest.mark.parametrize("readme", READMES)
def test_every_script_of_the_readme_exists(readme: str) -> None:
    scripts = set(COMMAND.findall((ROOT / readme).read_text(encoding="utf-8")))
    assert {"train.py", "predict.py", "validation.py"} <= scripts
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []


def test_every_foreign_option_is_in_a_page() -> None:
    """Else the list would hide an option that the scripts no longer have."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in USER_PAGES)
    assert [name for names in FOREIGN.values() for name in names.split() if name not in text] == []
    assert not set(" ".join(FOREIGN.values()).split()) & options_of_scripts()


def test_an_unknown_option_is_found() -> None:
    assert unknown_options("`--no-such-thing 3`, --data-path and --data_path") == ["--no-such-thing"]
