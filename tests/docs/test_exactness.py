"""The rows of docs/EXACTNESS.md hold, on small inputs; and a row that does not is not passed over.

`EXACTNESS_SEED=5 python -m pytest tests/docs/test_exactness.py` draws other photos, weights, boxes and masks.
"""

import math
import os
import sys
from argparse import Namespace

import pytest
import torch
from torch import Tensor

from tests.helpers.exact_rows import absolute, counted, merged, relative
from tests.programs import exactness

SEED = int(os.environ.get("EXACTNESS_SEED", "0"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [*(pytest.param(p, marks=pytest.mark.long) for p in ("trained", "gradients", "trajectory", "v2")), "masks"]
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_row_holds(data_folder, part: str):
    """The parts that no other test holds already."""
    torch.manual_seed(SEED)
    checks = exactness.PARTS[part][2](Namespace(quick=True, seed=SEED, data=data_folder))
    assert checks and not [check for check in checks if not check.held]


ONE = torch.tensor([1.0, -4.0])
APART = {
    "within": (ONE + 0.01, True),
    "beyond": (ONE + 0.02, False),
    "not a number": (torch.tensor([1.0, math.nan]), False),
    "another shape": (ONE[:1], False),
}


@pytest.mark.parametrize(("own", "held"), APART.values(), ids=APART)
def test_a_row_holds_within_its_tolerance_only(own: Tensor, held: bool):
    assert absolute("a", "b", own, ONE, 0.015).held == held
    assert relative("a", "b", [own, own], [ONE, ONE], 0.015 / 4).held == held


def test_a_row_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a, b: nothing to compare"):
        absolute("a", "b", [ONE[:0]], [ONE[:0]], 1)
    with pytest.raises(ValueError, match="a, b: nothing to compare"):
        counted("a", "b", 0, 0)


def test_rows_in_one_keep_the_largest_differences():
    rows = [absolute("a", "b", ONE + 0.5, ONE, 1).row, absolute("a", "b", 10 * ONE + 1, 10 * ONE, 1).row]
    assert merged("c", "d", rows) == ("c", "d", 4, 1.0, 0.125)


def test_the_page_opens_with_the_introduction_of_the_program():
    """The program keeps the opening of an existing page, so both must be changed together."""
    assert exactness.PAGE.read_text(encoding="utf-8").startswith(exactness.INTRODUCTION + "\n## ")


def test_the_exit_status_is_1_where_a_row_does_not_hold_and_the_page_keeps_the_rest(tmp_path, monkeypatch, capsys):
    page = tmp_path / "EXACTNESS.md"
    page.write_text("# Title\n\n## Good\n\nold\n\n## By hand\n\nkept\n")
    monkeypatch.setattr(exactness, "PAGE", page)
    monkeypatch.setattr(exactness, "real_data", lambda: tmp_path)
    parts = {
        "good": ("Good", "Words.", lambda args: [absolute("a", "same", ONE, ONE, 0)]),
        "bad": ("Bad", "Words.", lambda args: [absolute("a", "other", ONE + 1, ONE, 0)]),
    }
    monkeypatch.setattr(exactness, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["exactness.py", "--write", "--only", "good", "--seed", "3"])
    assert exactness.main() == 0
    monkeypatch.setattr(sys, "argv", ["exactness.py", "--write", "--only", "bad", "--seed", "4"])
    assert exactness.main() == 1
    text = page.read_text()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# Title", "## Good", "## Bad", "## By hand"]
    assert "old" not in text and "kept" in text and "Seed 3" in text and "Seed 4" in text
    assert "| a | other | 2 | 1.0e+00 | 2.5e-01 | 0 | **NO** |" in text
    assert "**NO**" in capsys.readouterr().out
