"""Detect the layouts that labelling tools write, and convert their annotations to COCO's form."""
