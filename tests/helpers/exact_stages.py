"""Compare the network with torchvision's stage by stage, each on torchvision's previous output; then end to end.

Functions take torchvision's network and ours, with equal settings, weights and precision, and return rows. In float64
every row has a bound. In float32, rounding decides at thresholds and ranks, differently on every processor: there only
the maps have one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.roi_heads import project_masks_on_boxes as reference_targets
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.transform import resize_boxes

from network_files import MaskRCNN
from network_files.masks.paste import paste_masks
from network_files.masks.targets import mask_targets
from network_files.matching import Objects
from network_files.rpn import per_anchor
from tests.helpers.exact_rows import Check, absolute, counted, relative
from tests.helpers.parity import Batch
from tests.helpers.photos import with_compact_masks

LEVELS = ("P2", "P3", "P4", "P5", "P6")
SAME_BOX = 0.01  # pixels between two boxes that count as one
Levels = dict[str, Tensor]


class Limits(NamedTuple):
    """The largest differences: of maps, relative; of boxes and probabilities; of the boxes without counterpart."""

    maps: float
    values: float
    alone: float


LIMITS = {torch.float64: Limits(1e-9, 1e-9, 0), torch.float32: Limits(1e-4, math.inf, math.inf)}


def limits_of(images: Sequence[Tensor]) -> Limits:
    return LIMITS[images[0].dtype]


@torch.no_grad()
def stage_checks(reference: nn.Module, own: MaskRCNN, batch: Batch, seed: int) -> list[Check]:
    """Rows for photos in 0..1 with dense masks, in the networks' precision; ours gets compact masks."""
    images, targets = batch
    maps = limits_of(images).maps
    reference.eval()
    own.eval()
    padded, their_targets = reference.transform(images, targets)
    own_padded, own_targets = own.transform(images, with_compact_masks(targets))
    levels = reference.backbone(padded.tensors)
    own_levels = own.backbone(padded.tensors)
    checks = [
        relative("transform", "resized batch", own_padded.tensors, padded.tensors, maps),
        absolute("transform", "sizes", sizes_of(own_padded.image_sizes), sizes_of(padded.image_sizes), 0),
        absolute("transform", "objects' boxes", boxes_of(own_targets), boxes_of(their_targets), 0),
    ]
    checks += [
        relative("pyramid", name, level, expected, maps)
        for name, level, expected in zip(LEVELS, own_levels.values(), levels.values())
    ]
    found, training_proposals, proposals = proposal_checks(reference, own, padded, levels, their_targets, seed)
    checks += found
    checks += sample_checks(reference, own, padded, levels, training_proposals, their_targets, own_targets, seed)
    found, detections = detection_checks(reference, own, padded, levels, proposals)
    checks += found
    checks += mask_checks(reference, own, padded, levels, detections, images)
    return checks + whole_way_checks(reference, own, images)


def as_uint8(images: list[Tensor]) -> list[Tensor]:
    return [(image * 255).round().to(torch.uint8) for image in images]


def sizes_of(sizes: list[tuple[int, int]]) -> Tensor:
    return torch.tensor([tuple(size) for size in sizes])


def boxes_of(targets: list[dict]) -> list[Tensor]:
    return [target["boxes"] for target in targets]


def proposal_checks(
    reference: nn.Module, own: MaskRCNN, padded: ImageList, levels: Levels, targets: list[dict], seed: int
) -> tuple[list[Check], list[Tensor], list[Tensor]]:
    """Rows for the RPN, and torchvision's proposals in training and in evaluation."""
    maps, limits = list(levels.values()), limits_of([padded.tensors])
    objectness, deltas = reference.rpn.head(maps)
    own_objectness, own_deltas = own.rpn.head(maps)
    anchors = reference.rpn.anchor_generator(padded, maps)
    own_anchors = own.rpn.anchor_generator(tuple(padded.tensors.shape[-2:]), maps)
    checks = [
        absolute("RPN", "anchors", [torch.cat(own_anchors)] * len(anchors), anchors, 0),
        relative("RPN", "objectness", own_objectness, objectness, limits.maps),
        relative("RPN", "deltas", own_deltas, deltas, limits.maps),
    ]
    flat = [torch.cat([per_anchor(x, n) for x in maps], dim=1) for maps, n in ((objectness, 1), (deltas, 4))]
    flat_objectness, flat_deltas = concat_box_prediction_layers(list(objectness), list(deltas))
    decoded = reference.rpn.box_coder.decode(flat_deltas, anchors).view(len(anchors), -1, 4)
    counts = [len(level) for level in own_anchors]
    proposals = {}
    for mode in (True, False):
        for network in (reference, own):
            network.rpn.train(mode)
        proposals[mode], _ = reference.rpn.filter_proposals(decoded, flat_objectness, padded.image_sizes, counts)
        found = own.rpn.propose(flat[0].squeeze(-1), flat[1], torch.cat(own_anchors), counts, padded.image_sizes)
        what = f"proposals, {'training' if mode else 'evaluation'}"
        checks.append(absolute("RPN", what, found, proposals[mode], limits.values))

    labels, _ = reference.rpn.assign_targets_to_anchors(anchors, targets)
    own_labels = own.rpn.assign_targets(Objects.of(targets, padded.tensors.device), anchors[0]).labels
    torch.manual_seed(seed)
    positive, negative = ([torch.where(mask)[0] for mask in masks] for masks in reference.rpn.fg_bg_sampler(labels))
    torch.manual_seed(seed)
    own_positive, own_negative, _ = own.rpn.sampler(own_labels)
    firsts = [image * len(anchors[0]) for image in range(len(anchors))]
    checks += [
        absolute("RPN", "labels of anchors", list(own_labels), labels, 0),
        absolute("RPN", "sampled positive anchors", [own_positive], [torch.cat(shifted(positive, firsts))], 0),
        absolute("RPN", "sampled negative anchors", [own_negative], [torch.cat(shifted(negative, firsts))], 0),
    ]
    return checks, proposals[True], proposals[False]


def sample_checks(
    reference: nn.Module,
    own: MaskRCNN,
    padded: ImageList,
    levels: Levels,
    proposals: list[Tensor],
    targets: list[dict],
    own_targets: list[dict],
    seed: int,
) -> list[Check]:
    """Rows for the training input of the heads: sampled RoIs with labels, features, outputs and mask targets."""
    torch.manual_seed(seed)
    rois, matched, labels, regression = reference.roi_heads.select_training_samples(list(proposals), targets)
    torch.manual_seed(seed)
    sample = own.roi_heads.sample_proposals(proposals, Objects.of(own_targets, padded.tensors.device))
    own_rois = sample.all_boxes()
    own_labels, own_matched = (values.split([len(b) for b in own_rois]) for values in (sample.labels, sample.matched))
    positive = [torch.where(image_labels > 0)[0] for image_labels in labels]
    own_regression = [
        own.roi_heads.box_coder.encode(target["boxes"][objects[chosen]], boxes[chosen])
        for target, objects, boxes, chosen in zip(own_targets, own_matched, own_rois, positive)
    ]
    checks = [
        absolute("sampled RoIs", "labels", own_labels, labels, 0),
        absolute("sampled RoIs", "positive boxes", at(own_rois, positive), at(rois, positive), 0),
        absolute("sampled RoIs", "all boxes", own_rois, rois, 0),
        absolute("sampled RoIs", "objects of positive RoIs", at(own_matched, positive), at(matched, positive), 0),
        relative("sampled RoIs", "regression targets", own_regression, at(regression, positive), limits_of(rois).maps),
    ]
    checks += box_head_checks(reference, own, padded, levels, rois, "training")[0]
    boxes, objects = at(rois, positive), at(matched, positive)
    expected = [reference_targets(t["masks"], b, i, 28) for t, b, i in zip(targets, boxes, objects)]
    found = [mask_targets([t["masks"]], [b], [i], 28) for t, b, i in zip(own_targets, boxes, objects)]
    return [*checks, absolute("mask head", "mask targets", found, expected, 0)]


def shifted(values: list[Tensor], by: list[int]) -> list[Tensor]:
    return [tensor + number for tensor, number in zip(values, by)]


def at(values: list[Tensor], chosen: list[Tensor]) -> list[Tensor]:
    return [tensor[indices] for tensor, indices in zip(values, chosen)]


def box_head_checks(
    reference: nn.Module, own: MaskRCNN, padded: ImageList, levels: Levels, rois: list[Tensor], mode: str
) -> tuple[list[Check], Tensor, Tensor]:
    """Rows for the box head, and torchvision's class logits and deltas."""
    heads, own_heads, maps = reference.roi_heads, own.roi_heads, limits_of([padded.tensors]).maps
    features = heads.box_roi_pool(levels, rois, padded.image_sizes)
    logits, deltas = heads.box_predictor(heads.box_head(features))
    own_features = own_heads.box_roi_pool(levels, rois, padded.image_sizes)
    own_logits, own_deltas = own_heads.box_predictor(own_heads.box_head(features))
    checks = [
        relative("box head", f"RoI features, {mode}", own_features, features, maps),
        relative("box head", f"class logits, {mode}", own_logits, logits, maps),
        relative("box head", f"deltas, {mode}", own_deltas, deltas, maps),
    ]
    return checks, logits, deltas


def detection_checks(
    reference: nn.Module, own: MaskRCNN, padded: ImageList, levels: Levels, proposals: list[Tensor]
) -> tuple[list[Check], tuple[list[Tensor], list[Tensor]]]:
    """Rows for the box head and its detections, and torchvision's boxes and labels."""
    checks, logits, deltas = box_head_checks(reference, own, padded, levels, proposals, "evaluation")
    boxes, scores, labels = reference.roi_heads.postprocess_detections(logits, deltas, proposals, padded.image_sizes)
    values = limits_of(boxes).values
    by_class = deltas.reshape(len(deltas), -1, 4)
    found = own.roi_heads.select_detections(logits, by_class, proposals, padded.image_sizes)
    checks += [
        absolute("detections", "labels", [d["labels"] for d in found], labels, values),
        absolute("detections", "scores", [d["scores"] for d in found], scores, values),
        absolute("detections", "boxes", [d["boxes"] for d in found], boxes, values),
    ]
    return checks, (boxes, labels)


def mask_checks(
    reference: nn.Module,
    own: MaskRCNN,
    padded: ImageList,
    levels: Levels,
    detections: tuple[list[Tensor], list[Tensor]],
    images: list[Tensor],
) -> list[Check]:
    """Rows for the mask head on torchvision's detections, and for their masks pasted into the photos."""
    boxes, labels = detections
    maps = limits_of(images).maps
    heads, own_heads = reference.roi_heads, own.roi_heads
    features = heads.mask_roi_pool(levels, boxes, padded.image_sizes)
    logits = heads.mask_predictor(heads.mask_head(features))
    own_logits = own_heads.mask_predictor(own_heads.mask_head(features))
    own_features = own_heads.mask_roi_pool(levels, boxes, padded.image_sizes)
    probs = logits.sigmoid()[torch.arange(len(logits)), torch.cat(labels)][:, None].split([len(b) for b in boxes])
    expected, found = [], []
    for image_probs, image_boxes, size, image in zip(probs, boxes, padded.image_sizes, images):
        photo = tuple(image.shape[-2:])
        in_photo = resize_boxes(image_boxes, size, photo)
        expected.append(paste_masks_in_image(image_probs, in_photo, photo))
        found.append(paste_masks(image_probs, in_photo, photo))
    return [
        relative("mask head", "RoI features", own_features, features, maps),
        relative("mask head", "mask logits", own_logits, logits, maps),
        absolute("pasted masks", "probabilities", found, expected, 0),
    ]


def whole_way_checks(reference: nn.Module, own: MaskRCNN, images: list[Tensor]) -> list[Check]:
    """Rows for proposals and detections from the photos on, where rounding errors add up and may change a rank."""
    padded, _ = reference.transform(images)
    levels = reference.backbone(padded.tensors)
    proposals, _ = reference.rpn(padded, levels)
    own_padded, _ = own.transform(images)
    own_levels = own.backbone(own_padded.tensors)
    own_proposals, _ = own.rpn(list(own_levels.values()), tuple(own_padded.tensors.shape[-2:]), own_padded.image_sizes)
    nearest = [nearest_of(ours, theirs) for ours, theirs in zip(own_proposals, proposals)]
    rows = [
        absolute(
            "end to end",
            "proposals",
            [ours[i[same]] for ours, (i, same) in zip(own_proposals, nearest)],
            [theirs[same] for theirs, (_, same) in zip(proposals, nearest)],
            limits_of(images).values,
        ),
        alone("end to end", "proposals", nearest, limits_of(images)),
    ]
    found, expected = own(images), reference(images)
    return rows + same_detections("end to end", "detections", found, expected)


def same_detections(stage: str, what: str, found: list[dict], expected: list[dict]) -> list[Check]:
    """Rows for the detections of each photo; those with equal scores may be in another order."""
    nearest = [
        nearest_of(ours["boxes"], theirs["boxes"], ours["labels"][:, None] == theirs["labels"])
        for ours, theirs in zip(found, expected)
    ]
    rows, limits = [], limits_of([detections["boxes"] for detections in expected])
    for key in ("boxes", "scores"):
        ours = [detections[key][i[same]] for detections, (i, same) in zip(found, nearest)]
        theirs = [detections[key][same] for detections, (_, same) in zip(expected, nearest)]
        rows.append(absolute(stage, f"{what}: {key}", ours, theirs, limits.values))
    different = pixels = 0
    for ours, theirs, (i, same) in zip(found, expected, nearest):
        apart = (ours["masks"][i[same]] > 0.5) != (theirs["masks"][same] > 0.5)
        different, pixels = different + int(apart.sum()), pixels + apart.numel()
    masks = counted(stage, f"{what}: pixels of masks", different, pixels, limits.alone)
    return [*rows, masks, alone(stage, what, nearest, limits)]


def nearest_of(ours: Tensor, theirs: Tensor, comparable: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """For each of their boxes [N, 4], the index of our nearest box [M, 4] and whether it is the same, both [N].

    Args:
        comparable: bool [M, N], whether two boxes have the same class.
    """
    apart = torch.cdist(ours, theirs, p=math.inf)
    if comparable is not None:
        apart[~comparable] = math.inf
    least, index = apart.min(0)
    return index, least <= SAME_BOX


def alone(stage: str, what: str, nearest: list[tuple[Tensor, Tensor]], limits: Limits) -> Check:
    """Boxes without counterpart; in float32, rounding decides at the threshold of NMS."""
    count = sum(len(same) for _, same in nearest)
    different = sum(int((~same).sum()) for _, same in nearest)
    return counted(stage, f"{what} without counterpart", different, count, limits.alone)
