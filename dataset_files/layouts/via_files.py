"""Read files of the VGG Image Annotator (VIA): region data of version 1, or projects and exports of version 2."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dataset_files.conversion_store import Converted, SplitFiles
from dataset_files.image_files import ImageFinder
from dataset_files.layouts import coco_builder
from dataset_files.layouts.coco_builder import CocoBuilder, NoArea, Shape
from dataset_files.layouts.text_files import beginning, file_per_split, read_json
from dataset_files.problems import Problems, shown

ONLY_CLASS = "object"  # if regions have no attribute


def find(root: Path, class_attribute: str | None = None) -> list[SplitFiles]:
    """Find the splits in a folder with VIA's JSON files, or in one such file. `class_attribute` as in `find_layout`."""
    return [
        SplitFiles(split, source, source.parent, partial(read_via, source, class_attribute), [source.parent])
        for split, source in file_per_split(root, ".json", is_via, "VIA files").items()
    ]


def is_via(path: Path) -> bool:
    """Whether a file begins like a VIA project or export."""
    head = beginning(path)
    is_export = all(key in head for key in (b'"filename"', b'"size"', b'"regions"'))
    return head.startswith(b"{") and (b'"_via_img_metadata"' in head or is_export)


def read_via(source: Path, class_attribute: str | None) -> Converted:
    """Convert a VIA file with images in or below its folder. ValueError if it is invalid or its classes are unclear."""
    problems, folder = Problems(), source.parent
    content = read_json(source, problems)
    entries = image_entries(content, source)
    attribute = choose_attribute(entries, class_attribute, source)
    options = value_at(content, "_via_attributes", "region", attribute, "options")
    builder, finder, folders = CocoBuilder(folder, (), problems), ImageFinder(folder), [folder, folder / "images"]
    default = value_at(content, "_via_settings", "core", "default_filepath")
    if isinstance(default, str) and default and "\0" not in default:
        folders.append(Path(os.path.normpath(folder / default.replace("\\", "/"))))
    for entry in entries:
        file_name = finder.find(entry["filename"], *folders)
        if file_name is None:
            problems.add("missing", shown(entry["filename"]))
        elif (image := builder.add_image(file_name)) is not None:
            builder.add_shapes(image, shapes_of(entry, file_name, attribute, options))
    return builder.converted()


def image_entries(content: object, source: Path) -> list[dict]:
    """Return the entries of all images: dicts with `filename` and `regions`."""
    metadata = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    entries = list(metadata.values()) if isinstance(metadata, dict) else metadata
    if not isinstance(entries, list) or not all(isinstance(value_at(entry, "filename"), str) for entry in entries):
        raise ValueError(f'{source}: expected VIA\'s {{"NAME": {{"filename": ..., "regions": [...]}}}}')
    for entry in entries:
        if not isinstance(entry.get("regions") or [], (list, dict)):
            regions = shown(entry["regions"])
            raise ValueError(f"{source}: {shown(entry['filename'])} has the regions {regions}; expected a list")
    return entries


def value_at(value: object, *keys: str | None) -> object:
    """Look up keys in nested dicts; None if one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def regions_of(entry: dict) -> Iterator[tuple[int, object, object]]:
    """Yield the number (from 1), shape attributes and region attributes of each region."""
    regions = entry.get("regions") or []
    for number, region in enumerate(regions.values() if isinstance(regions, dict) else regions, start=1):
        yield number, value_at(region, "shape_attributes"), value_at(region, "region_attributes")


def choose_attribute(entries: list[dict], wanted: str | None, source: Path) -> str | None:
    """Choose the region attribute that holds the class: `wanted`, or else the only one; None if there is none."""
    attributes: dict[str, None] = {}
    for entry in entries:
        for _, _, values in regions_of(entry):
            if isinstance(values, dict):
                attributes.update((key, None) for key, value in values.items() if value not in ("", None, {}))
    listed = ", ".join(sorted(attributes)) or "none"
    if wanted is not None:
        if wanted not in attributes:
            raise ValueError(f"{source}: no region has the attribute '{wanted}'; there are: {listed}")
        return wanted
    if len(attributes) > 1:
        raise ValueError(
            f"{source}: regions have several attributes ({listed}); name the one that holds the class, e.g. "
            f"--class-attribute {sorted(attributes)[0]}"
        )
    return next(iter(attributes), None)


def shapes_of(entry: dict, file_name: str, attribute: str | None, options: object) -> Iterator[Shape]:
    for number, shape, values in regions_of(entry):
        label, where = class_of(values, attribute, options), f"{file_name}, region {number}"
        yield Shape(where if label else f"{where}, {shown(values)}", label, None, partial(shape_polygon, shape))


def class_of(values: object, attribute: str | None, options: object) -> str:
    """Return the class name of a region; "" if it has none, or if several options of a checkbox are ticked.

    Options may have descriptions in a project; these are then the class names.
    """
    if attribute is None:
        return ONLY_CLASS
    value = value_at(values, attribute)
    if isinstance(value, dict):
        chosen = [key for key, ticked in value.items() if ticked is True or ticked == "true"]
        value = chosen[0] if len(chosen) == 1 else None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    description = value_at(options, str(value))
    return (description.strip() if isinstance(description, str) else "") or str(value).strip()


def shape_polygon(shape: object) -> list[float]:
    """Return a region's outline, with polylines closed. A point raises NoArea, an invalid shape ValueError."""
    if not isinstance(shape, dict):
        raise ValueError("has no shape_attributes")
    kind = shape.get("name")
    if kind == "point":
        raise NoArea("point")
    if kind in ("polygon", "polyline"):
        xs, ys = (coco_builder.image_coordinates(shape.get(f"all_points_{axis}")) for axis in "xy")
        if len(xs) != len(ys) or len(xs) < 3:
            raise ValueError(f"a {kind} with {len(xs)} x and {len(ys)} y")
        return [value for point in zip(xs, ys) for value in point]
    keys = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
    if not isinstance(kind, str) or kind not in keys:
        raise ValueError(f"unknown shape {shown(kind)}")
    x, y, *sizes = coco_builder.image_coordinates([shape.get(key) for key in keys[kind]])
    if kind == "rect":
        return coco_builder.rectangle_polygon(x, y, x + sizes[0], y + sizes[1])
    angle = coco_builder.image_coordinates([shape.get("theta", 0)])[0] if kind == "ellipse" else 0.0
    return coco_builder.ellipse_polygon(x, y, sizes[0], sizes[-1], angle)
