"""Detections in, COCO metrics out."""
