"""Read, check and index annotation files: COCO's JSON, Pascal VOC's XML and PNG files, and other layouts."""
