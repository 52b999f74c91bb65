"""Weight files of every style end in the network that they belong to; whatever does not fit is named."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN as ReferenceMaskRCNN

from tests.helpers.commands import assert_refused, run, succeeded
from tests.helpers.faults import thin_bodies
from tests.helpers.parity import (
    assert_same_detections,
    detections_in_float64,
    synthetic_batch,
)
from tests.helpers.project import ROOT
from tests.helpers.published_weights import (
    SIZES,
    enlivened,
    evaluation_args,
    in_older_style,
    published_v1,
    published_v2,
)
from train_utils.errors import InputError
from train_utils.models import ModelConfig, build_model, build_training_model, load_trained_model
from train_utils.options import TrainSettings
from train_utils.weight_files.weights import read_weight_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def v2_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("v2") / "v2.pth"
    torch.save(published_v2().state_dict(), path)
    yield path
    path.unlink()


def training_args(*given: str) -> TrainSettings:
    return TrainSettings.parse("", [*given, "--min-size", "96", "--max-size", "128", "--rois-per-image", "16"])


def test_the_published_file_of_v1_gives_torchvisions_detections(tmp_path: Path):
    torch.save(in_older_style(published_v1().state_dict()), tmp_path / "v1.pth")
    own, config, _ = load_trained_model(tmp_path / "v1.pth", evaluation_args())
    assert (config.arch, config.norm, config.norm_eps, config.num_classes) == ("v1", "frozen", 0.0, 91)
    images = synthetic_batch()[0][:1]
    assert_same_detections(detections_in_float64(own, images), detections_in_float64(published_v1(), images), least=10)


def test_an_epsilon_of_0_matters_to_that_file(tmp_path: Path):
    torch.save(published_v1().state_dict(), tmp_path / "current.pth")
    other, config, _ = load_trained_model(tmp_path / "current.pth", evaluation_args())
    assert config.norm_eps == 1e-5
    images = synthetic_batch()[0][:1]
    with pytest.raises(AssertionError):
        assert_same_detections(detections_in_float64(other, images), detections_in_float64(published_v1(), images))


@pytest.mark.parametrize(
    "wrapped", [pytest.param(False, marks=pytest.mark.long), True], ids=["plain", "under the key model"]
)
def test_a_file_of_v2_is_known_by_its_keys_and_gives_torchvisions_detections(tmp_path: Path, wrapped: bool):
    state = published_v2().state_dict()
    torch.save({"model": state, "epoch": 25} if wrapped else state, tmp_path / "v2.pth")
    own, config, rest = load_trained_model(tmp_path / "v2.pth", evaluation_args())
    assert (config.arch, config.norm, config.norm_eps) == ("v2", "batch", 1e-5)
    assert ("epoch" in rest) == wrapped
    images = synthetic_batch()[0][:1]
    assert_same_detections(detections_in_float64(own, images), detections_in_float64(published_v2(), images), least=10)


def test_v2_trains_from_its_own_file_with_another_number_of_classes(v2_file: Path, capsys):
    model, config = build_training_model(training_args("--pretrain", str(v2_file)), 4, None)
    assert (config.arch, config.norm, config.trainable_layers) == ("v2", "batch", 3)
    own, theirs = model.state_dict(), published_v2().state_dict()
    anew = {key for key in own if own[key].shape != theirs[key].shape}
    layers = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
    assert anew == {f"roi_heads.{layer}.{kind}" for kind in ("weight", "bias") for layer in layers}
    assert all(key in capsys.readouterr().out for key in ["box_predictor.cls_score.weight"])
    assert all(torch.equal(own[key], theirs[key]) for key in own if key not in anew)


def test_v2_starts_from_a_classifier_or_from_nothing(tmp_path: Path):
    classifier = resnet50(weights=None).state_dict()
    torch.save(classifier, tmp_path / "resnet50.pth")
    args = training_args("--arch", "v2", "--pretrain", str(tmp_path / "resnet50.pth"))
    model, config = build_training_model(args, 91, None)
    assert (config.arch, config.norm) == ("v2", "batch")
    assert list(model.state_dict()) == list(published_v2().state_dict())
    assert torch.equal(model.backbone.body.layer3[2].conv2.weight, classifier["layer3.2.conv2.weight"])
    fresh, config = build_training_model(training_args("--arch", "v2", "--pretrain", "False"), 91, None)
    assert config.arch == "v2" and list(fresh.state_dict()) == list(published_v2().state_dict())


def test_imagenets_newer_weights_are_read_as_torchvision_publishes_them(tmp_path: Path):
    """resnet50-11ad3fa6.pth is the plain state dict of a classifier, with its `fc` and `num_batches_tracked`."""
    classifier = {k: torch.rand_like(v) if v.is_floating_point() else v + 9 for k, v in resnet50().state_dict().items()}
    torch.save(classifier, tmp_path / "resnet50-11ad3fa6.pth")
    args = training_args("--pretrain", str(tmp_path / "resnet50-11ad3fa6.pth"))
    model, config = build_training_model(args, 4, None)
    assert (config.arch, config.norm, config.num_classes) == ("v1", "frozen", 4)
    body = model.backbone.body.state_dict()
    assert len(body) > 250 and all(torch.equal(value, classifier[key]) for key, value in body.items())


def test_another_arch_than_the_files_is_refused(v2_file: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"v2\.pth: holds the weights of --arch v2, not of v1"):
        load_trained_model(v2_file, evaluation_args(arch="v1"))
    with pytest.raises(InputError, match=r"v2\.pth: holds the weights of --arch v2, not of v1"):
        build_training_model(training_args("--arch", "v1", "--pretrain", str(v2_file)), 91, None)
    content = {"model_config": ModelConfig(91, "v2").to_plain()}
    with pytest.raises(InputError, match="was trained with --arch v2"):
        build_training_model(training_args("--arch", "v1"), 91, (tmp_path / "model_0.pth", content))


WRONG = {
    "missing": (lambda s: s.pop("roi_heads.box_head.fc6.weight"), r"1 missing: roi_heads\.box_head\.fc6\.weight"),
    "unexpected": (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected: extra"),
    "misshapen": (lambda s: s.update({"rpn.head.cls_logits.bias": torch.zeros(9)}), "1 of another shape: rpn.head"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_whatever_does_not_fit_is_named(tmp_path: Path, change, message: str):
    state = dict(published_v1().state_dict())
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=rf"weights\.pth: does not fit this network; {message}"):
        load_trained_model(tmp_path / "weights.pth", evaluation_args())


# --- the way back -----------------------------------------------------------------------------------------------


def exported(checkpoint: Path, output: Path) -> list[str]:
    """What tools/export_torchvision.py prints."""
    return succeeded(run(ROOT, "tools/export_torchvision.py", checkpoint, output)).out.splitlines()


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(5, norm="frozen", norm_eps=0.0, **SIZES),
        pytest.param(ModelConfig(3, "v2", **SIZES), marks=pytest.mark.long),
    ],
    ids=["v1, frozen, epsilon 0", "v2"],
)
def test_an_exported_checkpoint_loads_in_torchvision_by_the_three_printed_lines(tmp_path: Path, config: ModelConfig):
    torch.manual_seed(23)
    own = enlivened(build_model(config))
    torch.save({"model": own.state_dict(), "model_config": config.to_plain()}, tmp_path / "model_3.pth")
    heading, *lines = exported(tmp_path / "model_3.pth", tmp_path / "plain.pth")
    assert heading.startswith("#") and len(lines) == 3
    space: dict = {}
    exec("\n".join(lines), space)
    assert type(space["model"]) is ReferenceMaskRCNN
    images = synthetic_batch()[0][:1]
    found, expected = (detections_in_float64(model, images) for model in (own, space["model"]))
    assert_same_detections(found, expected, least=3, tolerance=1e-5)  # the file's variances, in float32, hold epsilon


def test_the_export_of_something_else_is_refused(tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    outcome = run(tmp_path, "tools/export_torchvision.py", "other.pth", "out.pth")
    assert_refused(outcome, "other.pth: not the weights of a Mask R-CNN")
    assert not (tmp_path / "out.pth").exists()


def test_checkpoints_of_torchvisions_scripts_and_of_lightning_are_read_safely(tmp_path: Path):
    with thin_bodies():
        model = build_model(ModelConfig(num_classes=3))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    torch.save(
        {
            "model": {f"module.{key}": value for key, value in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "args": Namespace(data_path="/somewhere", lr_steps=[16, 22], amp=False, device="cuda"),
            "epoch": 25,
        },
        tmp_path / "reference.pth",
    )
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in model.state_dict().items()}, "global_step": 7},
        tmp_path / "lightning.ckpt",
    )
    for name in ("reference.pth", "lightning.ckpt"):
        with thin_bodies():
            loaded, config, content = load_trained_model(tmp_path / name, evaluation_args())
        assert (config.num_classes, config.norm) == (3, "batch")
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert read_weight_file(tmp_path / "reference.pth")["args"]["lr_steps"] == [16, 22]


def test_a_pickled_model_is_refused_with_the_way_to_save_its_weights(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"whole.pth: refused.*torch.save\(model.state_dict\(\), 'weights.pth'\)$"):
        read_weight_file(tmp_path / "whole.pth")
