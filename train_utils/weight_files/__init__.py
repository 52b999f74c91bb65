"""Untrusted weight files in, state dicts out: .pth and .pkl, torchvision's and Detectron2's."""
