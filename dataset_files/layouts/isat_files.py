"""Read ISAT's layout: a JSON with `info` and `objects` beside each image, converted to labelme's form."""

from pathlib import Path

from dataset_files.conversion import SplitFiles
from dataset_files.layouts import labelme_files


def find(root: Path) -> list[SplitFiles]:
    """Find the splits of a folder with ISAT's files; [] if it has another layout."""
    return labelme_files.find(root, ISAT)


def as_labelme(content: dict) -> dict | None:
    """Convert the content of a file to labelme's form; None if it is not ISAT's."""
    info, objects = content.get("info"), content.get("objects")
    if not isinstance(info, dict) or not isinstance(objects, list) or "name" not in info:
        return None
    shapes = [
        {
            "label": one.get("category"), "points": one.get("segmentation"), "shape_type": "polygon",
            "group_id": one.get("group"), "iscrowd": bool(one.get("iscrowd")),
        }
        if isinstance(one, dict) else one
        for one in objects
    ]  # fmt: skip
    image_path = f"{info.get('folder') or '.'}/{info['name']}"
    return {
        "shapes": shapes,
        "imagePath": image_path,
        "imageHeight": info.get("height"),
        "imageWidth": info.get("width"),
    }


ISAT = labelme_files.Tool("objects", as_labelme)
