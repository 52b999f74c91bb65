"""Read untrusted weight files into state dicts: .pth and .pkl, of torchvision and Detectron2."""
