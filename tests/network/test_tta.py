"""Test-time augmentation: what it merges is what the network finds in each version of the image."""

import copy

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from network_files import MaskRCNN
from network_files.test_time_augmentation import TestTimeAugmentation
from tests.helpers.exported import lively_network
from train_utils.device import Precision
from train_utils.evaluation import ready_for_inference


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    network = lively_network("v1", 30, min_size=96, max_size=160, proposals=150)
    network.roi_heads.detections_per_img = 30
    return network.double()


@pytest.fixture
def image(photos) -> Tensor:
    return photos[0][0].double()  # in float64 no rounding decides in NMS


@torch.inference_mode()
def detect(model: MaskRCNN | TestTimeAugmentation, image: Tensor) -> dict[str, Tensor]:
    (found,) = model.detect([image])
    return found


def mirrored(found: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    x1, y1, x2, y2 = found["boxes"].unbind(1)
    boxes = torch.stack((width - x2, y1, width - x1, y2), 1)
    return dict(found, boxes=boxes, masks=found["masks"].flip(-1))


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """The same detections; those with near scores may have changed places."""
    assert len(one["boxes"]) == len(other["boxes"]) > 10
    distance = (one["boxes"][:, None] - other["boxes"]).abs().amax(2)
    distance[one["labels"][:, None] != other["labels"]] = torch.inf
    found, nearest = torch.where(distance < 1e-4)  # `resize_boxes` takes its ratios in float32
    assert len(found.unique()) == len(found) == len(nearest.unique()) == len(one["boxes"])
    for name, tolerance in (("scores", 1e-9), ("masks", 1e-5)):
        torch.testing.assert_close(one[name][found], other[name][nearest], rtol=0, atol=tolerance)


def test_one_version_alone_finds_what_the_network_finds(model, image):
    assert_close(detect(TestTimeAugmentation(model, (1.0,), mirrored=False), image), detect(model, image))


def test_a_mirrored_image_has_mirrored_detections(model, image):
    """As both are seen either way, up to rounding."""
    tta = TestTimeAugmentation(model, (1.0,))
    assert_close(detect(tta, image.flip(-1)), mirrored(detect(tta, image), image.shape[-1]))


def test_boxes_are_the_best_of_all_versions_and_masks_the_mean(model, image):
    found = []
    for scale in (0.75, 1.0, 1.25):
        version = copy.deepcopy(model)
        version.transform.min_size = (round(96 * scale),)
        version.transform.max_size = round(160 * scale)
        found.append(detect(version, image))
        found.append(mirrored(detect(version, image.flip(-1)), image.shape[-1]))
    boxes, labels, scores = (torch.cat([f[name] for f in found]) for name in ("boxes", "labels", "scores"))
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():  # NMS, box by box
        rivals = [k for k in kept if labels[k] == labels[i]]
        if not rivals or box_iou(boxes[i : i + 1], boxes[rivals]).max() <= model.roi_heads.nms_thresh:
            kept.append(i)
    kept = kept[: model.roi_heads.detections_per_img]
    own = detect(TestTimeAugmentation(model), image)
    torch.testing.assert_close(own["boxes"], boxes[kept], rtol=0, atol=1e-4)
    torch.testing.assert_close(own["scores"], scores[kept], rtol=0, atol=1e-9)
    assert torch.equal(own["labels"], labels[kept]) and len(kept) > 10

    single = [detect(TestTimeAugmentation(model, (s,), mirrored=False), image) for s in (0.75, 1.25)]
    both = detect(TestTimeAugmentation(model, (0.75, 1.25), mirrored=False), image)
    for k, box in enumerate(both["boxes"]):
        places = [((f["boxes"] - box).abs().amax(1) < 1e-2) & (f["labels"] == both["labels"][k]) for f in single]
        assert sum(int(place.any()) for place in places) == 1  # a box comes from one version, its mask from both
    assert both["masks"].shape == (len(both["boxes"]), 1, 28, 28)


def test_masks_are_averaged_over_the_versions(model, image):
    tta = TestTimeAugmentation(model, (1.0,))
    with torch.inference_mode():
        found = tta.detect_in(image)
        versions, size = list(tta.versions(image)), tuple(image.shape[-2:])
        each = [tta.mask_probabilities(v, found["boxes"], found["labels"], size) for v in versions]
    assert [version.is_mirrored for version in versions] == [False, True]
    assert not torch.allclose(each[0], each[1], atol=1e-3)
    torch.testing.assert_close(found["masks"], (each[0] + each[1]) / 2)


def test_it_can_be_made_ready_for_inference(model, image):
    tta = ready_for_inference(TestTimeAugmentation(model), Precision("cpu", None))
    with torch.inference_mode():
        detections = tta.detect([image, image[:, :90]])
    assert len(detections) == 2
    assert_close(detections[0], detect(TestTimeAugmentation(model), image))
