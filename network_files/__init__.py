"""Mask R-CNN (He et al., arXiv:1703.06870), hand-written: feature pyramid -> losses or detections."""

from network_files.instance_masks import InstanceMasks
from network_files.mask_rcnn import MaskRCNN

__all__ = ["InstanceMasks", "MaskRCNN"]
