"""Compute COCO metrics of detections."""
