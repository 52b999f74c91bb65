"""Mask R-CNN (He et al., arXiv:1703.06870), hand-written: feature pyramid -> losses or detections."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from network_files.mask_rcnn import MaskRCNN
    from network_files.masks.instance_masks import InstanceMasks

__all__ = ["InstanceMasks", "MaskRCNN"]


def __getattr__(name: str) -> Any:
    """Import `InstanceMasks` or `MaskRCNN` on first use: both need torch, but the run-length modules do not."""
    if name == "InstanceMasks":
        from network_files.masks.instance_masks import InstanceMasks

        return InstanceMasks
    if name == "MaskRCNN":
        from network_files.mask_rcnn import MaskRCNN

        return MaskRCNN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
