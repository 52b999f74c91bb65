"""--model-ema averages as torchvision does, is evaluated, saved and resumed, and leaves the training alone."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import train
from tests.helpers.comparing import unlike
from tests.helpers.faults import numbers_instead
from tests.helpers.published_weights import evaluation_args
from tests.helpers.thin_weights import thin_networks
from train_utils import evaluation
from train_utils.demo_dataset import make_demo_dataset
from train_utils.model_ema import ModelEma
from train_utils.models import load_trained_model
from train_utils.options import TrainSettings
from train_utils.run import run_folder
from train_utils.weight_files.weights import state_dict_of

RUN = ["--device", "cpu", "--min-size", "40", "--max-size", "56", "--rois-per-image", "8", "--workers", "0"]
RUN += ["--pretrain", "False", "--lr", "0.01", "--batch-size", "2", "--accumulate", "2", "--epochs", "2"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ema")
    make_demo_dataset(folder / "data", num_train=8, num_val=2)
    with thin_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "plot_loss_and_lr", numbers_instead)
        patch.setattr(run_folder, "plot_map", numbers_instead)
        yield folder


def trained(lab: Path, output: str, *words: str) -> dict:
    places = ["--data-path", str(lab / "data"), "--output-dir", str(lab / output)]
    train.main(TrainSettings.parse("", [*RUN, *places, *words]))
    return torch.load(lab / output / "model_1.pth", weights_only=True)


def same(one: Mapping, other: Mapping) -> bool:
    return unlike(dict(one), dict(other), "") == []


def test_the_average_equals_torchs_to_the_bit_and_steps_that_are_not_applied_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model[2].requires_grad_(False)
    ema = ModelEma(model, decay=0.9, warm_up=2)
    share = torch.tensor(1 - 0.9)  # float32, as on the device
    theirs = AveragedModel(
        model, avg_fn=lambda average, value, _: average * (1 - share) + value * share, use_buffers=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for number in range(1, 8):
        model(torch.rand(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        ema.update(number, torch.tensor(number != 5))
        if number != 5:
            theirs.update_parameters(model)
        if number < 2:
            theirs.n_averaged.zero_()  # as torchvision's scripts do in the warm-up, so that the next update copies
    own, averaged = ema.state_dict(), theirs.module.state_dict()
    for key in (key for key in own if key not in ("1.num_batches_tracked", "2.weight", "2.bias")):
        assert torch.equal(own[key], averaged[key])
        assert not torch.equal(own[key], model.state_dict()[key])
    assert own["2.weight"].data_ptr() == model[2].weight.data_ptr()


@pytest.mark.slow
def test_a_run_trains_the_same_weights_and_evaluates_and_resumes_the_averaged_ones(lab, monkeypatch, capsys):
    seen = []

    def remembering(model, *arguments):
        seen.append(copy.deepcopy(model.state_dict()))
        return detect_all(model, *arguments)

    detect_all = evaluation.detect_all
    monkeypatch.setattr(evaluation, "detect_all", remembering)
    plain = trained(lab, "plain")
    average = trained(lab, "averaged", "--model-ema", "0.5")
    assert "averaged, with decay 0.5 per step after a warm-up of 2 steps" in capsys.readouterr().out
    assert "model_ema" not in plain and same(plain["model"], average["model"]) and same(plain["model"], seen[1])
    assert same(seen[3], average["model_ema"]) and not same(average["model"], average["model_ema"])

    trained(lab, "averaged", "--resume", str(lab / "averaged" / "model_1.pth"), "--test-only")
    assert same(seen[4], average["model_ema"])
    trained(lab, "stopped", "--model-ema", "0.5", "--max-steps", "3")
    again = trained(lab, "stopped", "--resume", "auto", "--max-steps", "4")
    assert same(again["model_ema"], average["model_ema"])

    path = lab / "averaged" / "model_1.pth"
    capsys.readouterr()
    own, _, content = load_trained_model(path, evaluation_args(min_size=40, max_size=56))
    assert f"{path}: taking the averaged weights of --model-ema" in capsys.readouterr().out
    assert same(own.state_dict(), average["model_ema"]) and "model_ema" not in content


def test_torchvisions_averages_are_read():
    inside = {"n_averaged": torch.tensor(3), "module.weight": torch.ones(2)}
    assert list(state_dict_of({"model": {"weight": torch.zeros(2)}, "model_ema": inside}, "x.pth")) == ["weight"]


@pytest.mark.parametrize(("given", "value"), [([], False), (["--model-ema"], True), (["--model-ema", "0.99"], 0.99)])
def test_decay_defaults_to_a_part_of_the_run(given, value):
    settings = TrainSettings.parse("", [*given, "--epochs", "10"])
    assert settings.model_ema is value or settings.model_ema == value
    ema = ModelEma.of_run(nn.Linear(1, 1), settings, 100)
    assert ema.decay == (0.975 if value is True else value) if ema else value is False
