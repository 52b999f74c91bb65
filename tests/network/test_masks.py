"""Masks as crops, codes and targets: whatever the short way gives is what the long way over dense planes gives."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.roi_heads import project_masks_on_boxes as reference_targets
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, roi_align

from my_dataset_coco import CocoDetection
from network_files import InstanceMasks
from network_files.image_transform import ImageTransform
from network_files.masks.encode import encode_masks
from network_files.masks.paste import paste_masks
from network_files.masks.rle import compress, decode_crops, encode_crop, unpack_all
from network_files.masks.targets import mask_targets
from network_files.roi_align import PyramidRoIAlign
from tests.helpers.drawn_masks import HEIGHT, WIDTH, blobs, boxes_of_every_kind, detections
from tests.helpers.photos import packed_code

# Of pycocotools under NumPy 2, at every call.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def only(*pixels: tuple[int, int]) -> Tensor:
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8)
    for y, x in pixels:
        mask[0, y, x] = 1
    return mask


DENSE_MASKS = {
    "empty": only(),
    "one pixel": only((17, 31)),
    "first and last pixel": only((0, 0), (HEIGHT - 1, WIDTH - 1)),
    "last pixel": only((HEIGHT - 1, WIDTH - 1)),
    "full": torch.ones(1, HEIGHT, WIDTH, dtype=torch.uint8),
    "no objects": torch.zeros(0, HEIGHT, WIDTH, dtype=torch.uint8),
    "mixed": torch.cat([only(), only((3, 5)), torch.ones(1, HEIGHT, WIDTH, dtype=torch.uint8), only()]),
}


@pytest.fixture(params=[*DENSE_MASKS, "random"])
def dense(request: pytest.FixtureRequest) -> Tensor:
    return blobs(30) if request.param == "random" else DENSE_MASKS[request.param]


# --- compact masks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_dense_masks_come_back_from_their_crops(dense, dtype):
    masks = InstanceMasks.from_dense(dense.to(dtype))
    assert len(masks) == len(dense) and masks.size == masks.source_size == (HEIGHT, WIDTH)
    assert masks.dense().dtype == torch.uint8 and torch.equal(masks.dense(), dense)
    assert torch.equal(masks.areas(), dense.flatten(1).sum(1, dtype=torch.int64))


def test_a_crop_is_no_larger_than_its_object(dense):
    masks = InstanceMasks.from_dense(dense)
    for i, mask in enumerate(dense):
        left, top, pixels = masks.all_crops()[i]
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows) == 0:
            assert pixels.size == 0
        else:
            assert (left, top) == (columns.min(), rows.min())
            assert pixels.shape == (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1)
    assert masks.pixels.numel() == sum(masks.all_crops()[i][2].size for i in range(len(masks)))


def test_whatever_is_not_zero_in_a_dense_mask_is_the_object():
    dense = blobs(5)
    masks = InstanceMasks.from_dense(dense * 255)
    assert torch.equal(masks.areas(), dense.flatten(1).sum(1, dtype=torch.int64))
    assert torch.equal(masks.dense(), dense)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 4, 4), torch.zeros(4, 4, dtype=torch.uint8)], ids=["float", "2-D"])
def test_dense_masks_of_another_type_or_shape_are_refused(wrong):
    with pytest.raises(ValueError, match=r"masks must be uint8 or bool \[N, H, W\]"):
        InstanceMasks.from_dense(wrong)


def test_flipped_masks_equal_flipped_planes(dense):
    flipped = InstanceMasks.from_dense(dense).flip_horizontal()
    assert torch.equal(flipped.dense(), dense.flip(-1))
    assert torch.equal(flipped.flip_horizontal().dense(), dense)
    assert torch.equal(flipped.areas(), dense.flatten(1).sum(1, dtype=torch.int64))


SIZES = [(HEIGHT, WIDTH), (74, 106), (80, 115), (18, 26), (23, 200), (100, 7), (1, 1), (1, 60)]


@pytest.mark.parametrize("size", SIZES)
def test_resized_masks_equal_planes_resized_by_nearest_neighbour(dense, size):
    resized = InstanceMasks.from_dense(dense).resize(*size)
    expected = torch.zeros(len(dense), *size, dtype=torch.uint8)
    for plane, mask in zip(expected, dense):
        plane[:] = F.interpolate(mask[None, None].float(), size=size)[0, 0]
    assert resized.size == size and torch.equal(resized.dense(), expected)


def test_masks_are_not_flipped_after_a_resize():
    with pytest.raises(ValueError, match="flip before resize"):
        InstanceMasks.from_dense(blobs(2)).resize(10, 10).flip_horizontal()


INDICES = {
    "tensor": torch.tensor([4, 0, 0, 2]),
    "negative": torch.tensor([-1, -5]),
    "bool": torch.tensor([True, False, False, True, True]),
    "list": [3, 1],
    "slice": slice(1, 4),
    "empty tensor": torch.zeros(0, dtype=torch.int64),
    "empty list": [],
    "none of them": torch.zeros(5, dtype=torch.bool),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_indexing_picks_what_it_picks_from_a_dense_tensor(index):
    dense = torch.cat([blobs(3), only(), blobs(1)])
    chosen = InstanceMasks.from_dense(dense)[index]
    assert torch.equal(chosen.dense(), dense[index])
    assert torch.equal(chosen.areas(), dense[index].flatten(1).sum(1, dtype=torch.int64))
    resized = InstanceMasks.from_dense(dense).resize(20, 30)
    assert torch.equal(resized[index].dense(), resized.dense()[index])


# --- targets of the mask loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True], ids=["as it is", "flipped"])
@pytest.mark.parametrize(("min_size", "max_size"), [(HEIGHT, 1333), (90, 1333), (20, 1333), (60, 64)])
def test_mask_targets_equal_torchvision_to_the_last_bit(min_size, max_size, flip):
    dense = torch.cat([blobs(6), *DENSE_MASKS.values()])
    masks = InstanceMasks.from_dense(dense)
    image = torch.rand(3, HEIGHT, WIDTH)
    if flip:
        image, dense, masks = image.flip(-1), dense.flip(-1), masks.flip_horizontal()
    normal = ([0.0] * 3, [1.0] * 3)
    boxes = torch.rand(len(dense), 4)
    _, (reference,) = GeneralizedRCNNTransform(min_size, max_size, *normal)([image], [{"boxes": boxes, "masks": dense}])
    _, (own,) = ImageTransform(min_size, max_size, *normal)([image], [{"boxes": boxes, "masks": masks}])
    assert own["masks"].size == tuple(reference["masks"].shape[1:])
    rois = boxes_of_every_kind(*own["masks"].size)
    matched = torch.randint(len(dense), (len(rois),))
    expected = reference_targets(reference["masks"], rois, matched, 28)
    assert 0 < expected.mean() < 1
    assert_equal_targets(mask_targets([own["masks"]], [rois], [matched], 28), expected, rois)


def test_mask_targets_of_single_boxes_equal_torchvision_to_the_last_bit():
    """One box an object: no other box of the object widens the part of the mask that is looked at."""
    dense = (torch.rand(1, 20, 27) > 0.5).to(torch.uint8)
    masks, first = InstanceMasks.from_dense(dense), torch.zeros(1, dtype=torch.int64)
    rois = boxes_of_every_kind(20, 27)
    targets = torch.cat([mask_targets([masks], [roi[None]], [first], 14) for roi in rois])
    expected = reference_targets(dense, rois, torch.zeros(len(rois), dtype=torch.int64), 14)
    assert_equal_targets(targets, expected, rois)


def assert_equal_targets(targets: Tensor, expected: Tensor, rois: Tensor) -> None:
    assert targets.shape == expected.shape and targets.dtype == expected.dtype
    wrong = (targets != expected).flatten(1).any(1)
    assert not wrong.any(), f"{int(wrong.sum())} of {len(rois)} boxes, the first {rois[wrong][0].tolist()}"


def test_no_boxes_make_no_mask_targets():
    masks = InstanceMasks.from_dense(blobs(2))
    nothing = torch.zeros(0, dtype=torch.int64)
    assert mask_targets([masks], [torch.zeros(0, 4)], [nothing], 28).shape == (0, 28, 28)
    assert mask_targets([masks[[]]], [torch.zeros(0, 4)], [nothing], 28).shape == (0, 28, 28)


# --- pasted masks and their codes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "count"), [(97, 33, 200), (60, 80, 200), (1, 50, 50), (240, 320, 20)])
def test_pasted_masks_equal_torchvision_to_the_last_bit(height, width, count):
    probs, boxes = detections(height, width, count)
    pasted = paste_masks(probs, boxes, (height, width))
    assert torch.equal(pasted, paste_masks_in_image(probs, boxes, (height, width)))
    assert pasted.shape == (count, 1, height, width)


def test_no_detections_make_no_masks():
    probs, boxes = torch.zeros(0, 1, 28, 28), torch.zeros(0, 4)
    assert paste_masks(probs, boxes, (30, 40)).shape == (0, 1, 30, 40)
    assert encode_masks(probs.numpy(), boxes.numpy(), (30, 40)) == []


# --- run-length codes -------------------------------------------------------------------------------------------


def run_lengths(mask: np.ndarray) -> list[int]:
    """The definition: lengths of runs down the columns, zeros first."""
    counts, value = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def on_plane(left: int, top: int, crop: np.ndarray, height: int, width: int) -> np.ndarray:
    plane = np.zeros((height, width), dtype=np.uint8)
    plane[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return plane


def test_codes_of_crops_equal_codes_of_planes(dense):
    masks = InstanceMasks.from_dense(dense)
    for i, mask in enumerate(dense.numpy()):
        left, top, crop = masks.all_crops()[i]
        code = encode_crop(crop.astype(bool), left, top, HEIGHT, WIDTH)
        assert code == {"size": [HEIGHT, WIDTH], "counts": run_lengths(mask)}
        assert compress([code]) == [coco_mask.encode(np.asfortranarray(mask))]


def test_packed_counts_unpack_to_run_lengths(dense):
    for mask in dense.numpy():
        counts = unpack_all([coco_mask.encode(np.asfortranarray(mask))["counts"]])[0]
        assert counts.dtype == np.int64 and counts.tolist() == run_lengths(mask)


def test_no_codes_and_empty_ones_unpack_to_nothing():
    assert [values.tolist() for values in unpack_all([])] == [[], []]
    assert [values.tolist() for values in unpack_all([b"", b"05", b""])] == [[0, 5], [0, 2, 0]]


def test_packed_counts_unpack_however_long_the_runs_are():
    random = np.random.default_rng(0)
    for _ in range(200):
        counts = (2 ** random.uniform(0, 24, random.integers(1, 12))).astype(int).tolist()
        counts[0] = counts[0] if random.random() < 0.5 else 0
        packed = coco_mask.frPyObjects({"size": [sum(counts), 1], "counts": counts}, sum(counts), 1)["counts"]
        assert unpack_all([packed])[0].tolist() == counts


def test_codes_decode_to_the_smallest_crop(dense):
    masks = InstanceMasks.from_dense(dense)
    for i, mask in enumerate(dense.numpy()):
        code = coco_mask.encode(np.asfortranarray(mask))
        for counts in (code["counts"], code["counts"].decode()):
            left, top, crop = decode_crops([{"size": code["size"], "counts": counts}])[0]
            assert crop.dtype == np.uint8 and crop.flags.c_contiguous
            assert np.array_equal(crop, masks.all_crops()[i][2]) and (
                crop.size == 0 or (left, top) == masks.all_crops()[i][:2]
            )


def test_codes_with_runs_of_no_length_decode():
    random = np.random.default_rng(1)
    for _ in range(200):
        counts = random.integers(0, 4, 60)
        height = int(random.integers(1, 12))
        counts = [*counts.tolist(), int(-counts.sum() % height)]
        size = [height, sum(counts) // height]
        code = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)
        assert np.array_equal(on_plane(*decode_crops([code])[0], *size), coco_mask.decode(code))


@pytest.mark.parametrize("split", [pytest.param("train", marks=pytest.mark.slow), "val"])
def test_every_polygon_and_crowd_of_photos_decodes_as_by_pycocotools(data_folder, split):
    content = json.loads((data_folder / "coco_tiny" / "annotations" / f"instances_{split}2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    crowds = 0
    for annotation in content["annotations"]:
        size = sizes[annotation["image_id"]]
        code = packed_code(annotation, *size)
        left, top, crop = decode_crops([code])[0]
        plane = coco_mask.decode(code)
        assert np.array_equal(on_plane(left, top, crop, *size), plane)
        assert encode_crop(crop.astype(bool), left, top, *size)["counts"] == unpack_all([code["counts"]])[0].tolist()
        assert compress([encode_crop(crop.astype(bool), left, top, *size)]) == [code]
        crowds += annotation["iscrowd"]
    assert crowds > 5


# --- RoIAlign on a pyramid --------------------------------------------------------------------------------------


def pyramid(sizes: list[tuple[int, int]]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Features of a padded batch at strides 4..64, and boxes of every kind and size in each image's frame."""
    height, width = 256, 320
    features = {str(i): torch.randn(len(sizes), 6, height // s, width // s) for i, s in enumerate((4, 8, 16, 32))}
    features["pool"] = torch.randn(len(sizes), 6, height // 64, width // 64)
    boxes = [boxes_of_every_kind(*size, count=12) for size in sizes]
    # The areas at which equation 1 changes the level.
    corner = torch.rand(6, 2) * 20
    sides = torch.tensor([56.0, 112, 224, 448, 111.9, 224.1])[:, None]
    return features, [torch.cat((b, torch.cat((corner, corner + sides), 1))) for b in boxes]


@pytest.mark.parametrize("names", [("0", "1", "2", "3"), ("1", "2"), ("2",)], ids="-".join)
@pytest.mark.parametrize("sampling_ratio", [2, 0, 1, 3])
def test_pyramid_roi_align_equals_torchvision_forward_and_backward(sampling_ratio, names):
    image_sizes = [(256, 300), (200, 320)]
    features, boxes = pyramid(image_sizes)
    results = []
    for align in (
        PyramidRoIAlign(names, (7, 5), sampling_ratio),
        MultiScaleRoIAlign(list(names), (7, 5), sampling_ratio),
    ):
        leaves = {name: level.clone().requires_grad_() for name, level in features.items()}
        output = align(leaves, boxes, image_sizes)
        torch.manual_seed(1)
        (output * torch.randn(output.shape)).sum().backward()
        results.append((output.detach(), {name: leaves[name].grad for name in names}))
    (own, own_gradients), (reference, reference_gradients) = results
    assert own.shape == reference.shape == (sum(map(len, boxes)), 6, 7, 5)
    # Measured: 7e-7, and 7e-6 in gradients of up to 22.
    torch.testing.assert_close(own, reference, rtol=0, atol=1e-5)
    for name in names:
        assert reference_gradients[name].abs().max() > 0.1
        torch.testing.assert_close(own_gradients[name], reference_gradients[name], rtol=0, atol=1e-4)


def test_aligned_roi_align_equals_the_operator():
    level, boxes = torch.randn(2, 5, 32, 40), boxes_of_every_kind(128, 160, count=12)
    rois = torch.cat((torch.ones(len(boxes), 1), boxes), 1)
    own = PyramidRoIAlign(("0",), 7, 2, aligned=True)({"0": level}, [boxes[:0], boxes], [(128, 160)] * 2)
    # Measured: 5e-7.
    torch.testing.assert_close(own, roi_align(level, rois, 7, 0.25, 2, aligned=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_roi_align_takes_images_without_boxes(sampling_ratio):
    features, boxes = pyramid([(256, 320)] * 2)
    align = PyramidRoIAlign(sampling_ratio=sampling_ratio)
    sizes = [(256, 320)] * 2
    both = align(features, [boxes[0][:0], boxes[1]], sizes)
    assert torch.equal(both, align(features, boxes, sizes)[len(boxes[0]) :])
    nothing = align({k: v.requires_grad_() for k, v in features.items()}, [boxes[0][:0]] * 2, sizes)
    assert nothing.shape == (0, 6, 7, 7)
    nothing.sum().backward()


# --- memory -----------------------------------------------------------------------------------------------------


def crowded_dataset(root, count: int, height: int, width: int) -> None:
    """One picture with `count` twelve-cornered objects about 80 px wide, in COCO's layout."""
    random = np.random.default_rng(2)
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    annotations = []
    for i in range(count):
        centre = random.uniform((40, 40), (width - 40, height - 40))
        corners = centre + 40 * random.uniform(0.8, 1, (12, 1)) * np.stack((np.cos(angles), np.sin(angles)), 1)
        low, high = corners.min(0), corners.max(0)
        annotations.append(
            {"id": i + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": float(np.prod(high - low)),
             "bbox": [*low.tolist(), *(high - low).tolist()], "segmentation": [corners.reshape(-1).tolist()]}
        )  # fmt: skip
    (root / "annotations").mkdir()
    (root / "train2017").mkdir()
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / "train2017" / "1.jpg")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def test_a_hundred_objects_take_less_than_a_tenth_of_dense_masks(tmp_path):
    count, height, width = 100, 480, 640
    crowded_dataset(tmp_path, count, height, width)
    dataset = CocoDetection(tmp_path)
    dataset[0]
    tracemalloc.start()
    try:
        _, target = dataset[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    dense_bytes = count * height * width
    assert len(target["masks"]) == len(target["boxes"]) == count
    # Pickled, as a worker sends it: a view of some larger tensor would travel whole.
    assert len(pickle.dumps(target)) < dense_bytes / 10
    assert peak < dense_bytes / 10
    areas = target["masks"].areas().float()
    assert 40 * 40 < areas.mean() < 80 * 80
