"""Annotation files in, what lies in them and what is wrong with it out: COCO's JSON, Pascal VOC's XML and PNG files."""
