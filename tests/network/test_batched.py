"""What is done for all images of a batch at once equals torchvision's, image by image, to the last bit."""

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection._utils import Matcher as TorchvisionsMatcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms

from network_files import matching, suppression
from network_files.anchors import MOST_SHAPES, AnchorGenerator
from network_files.boxes import clip_boxes, padded, pairwise_iou
from network_files.matching import Matcher
from network_files.suppression import ROUNDS, nms_at_once, nms_of_images, nms_of_rows

torch.manual_seed(0)


def crowded_boxes(*shape: int) -> Tensor:
    """Boxes of which many overlap much, some are equal and some have whole numbers, so that ties are frequent."""
    corner, size = torch.rand(*shape, 2) * 60, 10 + torch.rand(*shape, 2) * 30
    boxes = torch.cat((corner, corner + size), dim=-1)
    boxes[..., ::3, :] = boxes[..., ::3, :].round()
    boxes[..., 5::7, :] = boxes[..., :1, :]
    return boxes


def test_iou_of_images_side_by_side_equals_torchvisions():
    boxes, others = crowded_boxes(3, 40), crowded_boxes(1, 50)
    for own, each in zip(pairwise_iou(boxes, others), boxes):
        assert torch.equal(own, box_iou(each, others[0]))


def test_clipping_all_images_at_once_equals_torchvisions():
    boxes, sizes = crowded_boxes(3, 40) - 20, [(30, 50), (41, 20), (80, 80)]
    expected = [clip_boxes_to_image(b, size) for b, size in zip(boxes, sizes)]
    assert torch.equal(clip_boxes(boxes, sizes), torch.stack(expected))


def test_rows_of_all_images_are_padded_with_zeros():
    values, numbers = torch.randn(7, 4), torch.arange(7)
    (rows, of_rows), counts = padded(values, numbers, counts=[3, 0, 4])
    assert counts.tolist() == [3, 0, 4] and of_rows.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [3, 4, 5, 6]]
    assert torch.equal(rows, pad_sequence(list(values.split([3, 0, 4])), batch_first=True))
    (nothing,), _ = padded(values[:0], counts=[0, 0])
    assert nothing.shape == (2, 0, 4)


def test_anchors_are_made_once_per_shape_and_serve_training_after_inference():
    generator, levels = (
        AnchorGenerator(),
        [[torch.zeros(1, 1, side >> i, 8) for i in range(5)] for side in range(64, 84)],
    )
    with torch.inference_mode():
        first = generator((256, 64), levels[0])
    assert generator((256, 64), levels[0]) is first and not first[0].is_inference()
    assert not torch.equal(generator((512, 64), levels[0])[0], first[0])
    assert generator.double()((256, 64), levels[0])[0].dtype == torch.float64
    for each in levels:
        generator((256, 64), each)
    assert len(levels) > MOST_SHAPES >= len(generator.cache)


@pytest.mark.parametrize("pairs_at_once", [1, 3 * 500 * 7, 2**24])
@pytest.mark.parametrize(("high", "low", "low_quality"), [(0.7, 0.3, True), (0.5, 0.5, False)])
def test_matching_in_chunks_of_objects_equals_torchvisions(high, low, low_quality, pairs_at_once, monkeypatch):
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", pairs_at_once)
    candidates, objects = crowded_boxes(500), [crowded_boxes(n) for n in (23, 0, 9)]
    objects[2][4] = torch.tensor([500.0, 500, 510, 510])  # overlaps nothing: all candidates are its best
    (boxes,), counts = padded(torch.cat(objects), counts=[len(each) for each in objects])
    matches = Matcher(high, low, low_quality)(boxes, counts, candidates[None])
    reference = TorchvisionsMatcher(high, low, low_quality)
    for own, boxes in zip(matches, objects):
        expected = reference(box_iou(boxes, candidates)) if len(boxes) else torch.full((500,), -1)
        assert torch.equal(own, expected)
        assert len(boxes) == 0 or len(set(own.tolist())) > 5


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_suppression_in_rows_equals_torchvisions_with_ties_and_empty_rows(threshold: float):
    boxes, usable = crowded_boxes(6, 300), torch.rand(6, 300) < 0.9
    usable[2], usable[3, 1:], usable[4] = False, False, True
    kept, counts = nms_of_rows(boxes, usable, threshold)
    for row, use, own, count in zip(boxes, usable, kept, counts):
        places = torch.where(use)[0]
        expected = places[nms(row[use], torch.linspace(1, 0, len(places)), threshold)]
        assert torch.equal(torch.where(own)[0], expected.sort().values) and count == len(expected)
    assert 0 < counts[0] < usable[0].sum() and counts[2:4] == [0, int(usable[3, 0])]
    assert nms_of_rows(boxes[:, :0], usable[:, :0], threshold)[1] == [0] * 6


def test_suppression_follows_chains_longer_than_the_rounds_between_two_looks():
    count = 5 * ROUNDS + 1  # each box overlaps its neighbours only, and every second one stays
    left = torch.arange(count)[:, None] * 2.0
    boxes = torch.cat((left, left * 0, left + 10, left * 0 + 10), dim=1)[None]
    kept, counts = nms_of_rows(boxes, torch.ones(1, count, dtype=torch.bool), 0.5)
    assert kept[0].tolist() == [i % 2 == 0 for i in range(count)] and counts == [(count + 1) // 2]


@pytest.mark.parametrize("at_once", [2**24, 1000])
def test_suppression_by_class_equals_torchvisions_in_its_order(at_once, monkeypatch):
    monkeypatch.setattr(suppression, "PAIRS_AT_ONCE", at_once)
    boxes, classes, usable = crowded_boxes(3, 200), torch.randint(1, 4, (3, 200)), torch.rand(3, 200) < 0.8
    usable[1] = False
    scores = torch.randint(1, 40, (3, 200)) / 40  # with ties
    on_cpu = nms_of_images(boxes, scores, classes, usable, 0.5)
    found = nms_at_once(boxes, scores, classes, usable, 0.5)
    for i, (b, s, c, use) in enumerate(zip(boxes, scores, classes, usable)):
        places = torch.where(use)[0]
        expected = places[batched_nms(b[use], s[use], c[use], 0.5)]
        for best, counts in (found, on_cpu):
            assert torch.equal(best[i, : counts[i]], expected)
