"""The layouts that labelling tools write: which one a folder has, and its annotations in COCO's form."""
