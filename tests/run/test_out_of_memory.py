"""The end of a run whose step ran out of memory, without a network; tests/run/test_resume.py has whole runs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from train_utils import step_results
from train_utils.errors import OUT_OF_MEMORY, RunEnded
from train_utils.step_results import StepResults
from train_utils.sync_batch_norm import SyncBatchNorm2d
from train_utils.training_state import Progress

IMAGES = [torch.zeros(3, 480, 640), torch.zeros(3, 500, 20)]
TARGETS = [{"labels": torch.ones(3)}, {"labels": torch.ones(0)}]


def ended(step: int, is_updating: bool = False, model: nn.Module | None = None) -> tuple[str, bool]:
    """Return the message, and whether a checkpoint was written."""
    model = model or nn.Linear(2, 2)
    training = SimpleNamespace(
        model=model, optimizer=torch.optim.SGD(model.parameters()), progress=Progress(step), device=torch.device("cpu"),
        accumulate=2, is_updating=is_updating,
    )  # fmt: skip
    run = SimpleNamespace(writes=True, unsaved_since=None)
    saved: list[int] = []

    def save() -> None:
        saved.append(step)
        run.unsaved_since = None

    state = SimpleNamespace(training=training, run=run, steps_per_epoch=4, number=step + 1)
    with pytest.raises(RunEnded) as end:
        StepResults(state, [], save).end_out_of_memory(MemoryError("9 GiB"), IMAGES, TARGETS)
    assert end.value.status == OUT_OF_MEMORY
    return str(end.value), bool(saved)


def test_the_message_names_step_batch_and_remedies():
    message, saved = ended(5)
    assert saved and message.startswith(
        "out of memory in step 6: 2 images of up to 500 x 640 pixels, 3 objects, in 2 parts (9 GiB); a checkpoint of "
        "step 5 was written; continue with --resume auto"
    )


def test_a_checkpoint_that_would_be_wrong_or_needless_is_not_written():
    for arguments in ((4,), (5, True)):  # the first step of an epoch; weights that may be half updated
        message, saved = ended(*arguments)
        assert not saved and "; the last checkpoint stays; continue" in message


def test_another_process_than_the_main_one_writes_only_the_same_running_statistics(monkeypatch):
    monkeypatch.setattr(step_results, "is_main", lambda: False)
    assert ended(5, model=SyncBatchNorm2d(2))[1] and not ended(5, model=nn.BatchNorm2d(2))[1]
