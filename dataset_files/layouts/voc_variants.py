"""Read VOC-like folders that the devkit's reader does not accept.

They have their own classes, no XML, coloured masks or no lists. Instances come from SegmentationObject, and their
classes from labelmap.txt or class_names.txt with SegmentationClass, or from the XML files by overlap.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_files.coco_file import AS_WRITTEN, Reading
from dataset_files.conversion_store import Converted, SplitFiles
from dataset_files.image_files import ImageFinder, files_below, names_in, split_paths
from dataset_files.layouts import mask_images, voc_files
from dataset_files.layouts.coco_builder import CocoBuilder, Crop
from dataset_files.layouts.mask_images import MASK_SUFFIXES, Blurred, MaskImage
from dataset_files.layouts.text_files import parse_xml, read_lines
from dataset_files.layouts.voc_files import VOC_CLASSES, VOID_LABEL
from dataset_files.problems import Problems, shown

NO_CLASS = ("background", "_background_", "__ignore__", "ignore")
VOID_COLOUR = 0xE0E0C0  # of palette index 255 in VOC's colour map
IMAGE_FOLDERS = ("JPEGImages", "Images", "images")
CLASS_TABLES = ("labelmap.txt", "class_names.txt")
SECOND_CLASS = 0.1  # share of an instance's pixels that is more than noise at a border
PEEKED = 300  # XML files that are searched for class names


def find(root: Path) -> list[SplitFiles]:
    """Find the splits of a folder with SegmentationObject, unless the devkit's reader accepts it."""
    folder = variant_folder(root)
    if folder is None or is_standard(folder):
        return []
    xml = folder / "Annotations"
    tables = [path for name in CLASS_TABLES if (path := folder / name).is_file()]
    if not tables and not names_in(xml, ".xml"):
        expected = "labelmap.txt, class_names.txt or Annotations/*.xml"
        raise ValueError(f"{folder}: nothing names the classes; expected {expected}")
    instances, classes = (masks_folder(folder, name) for name in ("SegmentationObject", "SegmentationClass"))
    images = next((path for name in IMAGE_FOLDERS if (path := folder / name).is_dir()), folder)
    inputs = [path for path in (instances, classes, *tables[:1], xml, images) if path is not None and path.exists()]
    reader = VariantReader(folder, images, instances or folder, classes, *tables[:1])
    lists: dict[str, Path | None] = {**find_lists(folder)} or {"": None}
    return [
        SplitFiles(name, path or reader.instances, images, partial(reader.read, path), inputs, takes_reading=True)
        for name, path in lists.items()
    ]


def variant_folder(root: Path) -> Path | None:
    """Return the folder with SegmentationObject: `root`, or VOC* in `root` or in `root`/VOCdevkit; None without one."""
    places = (root, root / "VOCdevkit")
    years = [place / name for place in places for name in names_in(place) if name.startswith("VOC")]
    return next((folder for folder in (root, *years) if masks_folder(folder, "SegmentationObject")), None)


def masks_folder(folder: Path, name: str) -> Path | None:
    """Return the folder {name}PNG, which older labelme2voc versions wrote, or else {name}; None if both lack masks."""
    for candidate in (folder / f"{name}PNG", folder / name):
        if names_in(candidate, MASK_SUFFIXES) or any((candidate / entry).is_dir() for entry in names_in(candidate)):
            return candidate
    return None


def find_lists(folder: Path) -> dict[str, Path]:
    """Map splits to their lists of images. If no list is named like a split, map "" to one, such as default.txt."""
    for place in (folder / "ImageSets" / "Segmentation", folder / "ImageSets" / "Main"):
        if splits := split_paths(place, ".txt"):
            return splits
        lists = names_in(place, ".txt")
        for name in ("trainval.txt", "default.txt", *lists):
            if name in lists:
                return {"": place / name}
    return {}


def is_standard(folder: Path) -> bool:
    """Whether the devkit's reader accepts a folder: XML files with VOC's classes, palette PNGs, lists and JPEGs."""
    if any((folder / name).is_file() for name in CLASS_TABLES):
        return False
    lists = [folder / "ImageSets" / "Segmentation" / f"{name}.txt" for name in ("train", "val")]
    if not all(path.is_file() for path in lists):
        return False
    try:
        names = [name for path in lists for name in voc_files.read_list(path, Problems()).values()]
    except ValueError:
        return True  # the devkit's reader reports what is wrong with the list
    names = names[:: max(len(names) // PEEKED, 1)]
    has_xml = any((folder / "Annotations" / f"{name}.xml").is_file() for name in names)
    return has_xml and all(looks_standard(folder, name) for name in names)


def looks_standard(folder: Path, name: str) -> bool:
    """Whether the devkit's reader accepts an image: a .jpg, only VOC's classes in its XML file, and an indexed mask."""
    if not (folder / "JPEGImages" / f"{name}.jpg").is_file():
        return False
    with suppress(ValueError, OSError):  # the devkit's reader reports it, unless all are missing
        labels = parse_xml(folder / "Annotations" / f"{name}.xml").iterfind("object/name")
        if any((label.text or "").strip() not in VOC_CLASSES for label in labels):
            return False
    with suppress(Exception):  # Pillow can raise any exception; the devkit's reader reports it
        with Image.open(folder / "SegmentationObject" / f"{name}.png", formats=["PNG"]) as image:
            return image.mode in ("P", "L")
    return True


@dataclass
class ClassTable:
    """The class names of indices and of colours (0xRRGGBB) in masks."""

    by_index: dict[int, str] = field(default_factory=dict)
    by_colour: dict[int, str] = field(default_factory=dict)
    has_colours: bool = False  # use the palette of a mask, not its indices

    def names(self) -> list[str]:
        return list(dict.fromkeys(self.by_index.values()))


def read_class_table(path: Path, reading: Reading) -> ClassTable:
    """Read the classes of labelmap.txt or class_names.txt; ValueError for an invalid line."""
    lines = [line for line in read_lines(path) if line]
    if path.name != "labelmap.txt":
        lines = lines[1:] if lines[:1] == ["__ignore__"] else lines
        first = 0 if lines and lines[0] in NO_CLASS else 1
        names = {k: n for k, n in enumerate(lines, start=first) if n not in NO_CLASS or reading.is_region(n)}
        return ClassTable(names, {voc_colour(k): name for k, name in names.items()})
    table = ClassTable(has_colours=True)
    # CVAT's lines are name:red,green,blue:parts:actions, with the colours of the masks.
    for number, line in enumerate(line for line in lines if not line.startswith("#")):
        match = re.fullmatch(r"(.+?):(\d{1,3}),(\d{1,3}),(\d{1,3})(?::[^:]*){0,2}", line)
        if match is None or max(map(int, match.groups()[1:])) > 255:
            raise ValueError(f"{path}: expected lines such as 'cat:128,0,0::', not {shown(line)}")
        name, colour = match[1], int(mask_images.pack_colours(np.array([int(v) for v in match.groups()[1:]])))
        if name not in NO_CLASS or reading.is_region(name):
            if colour in table.by_colour:
                raise ValueError(f"{path}: {table.by_colour[colour]!r} and {name!r} have the same colour")
            table.by_index[number] = table.by_colour[colour] = name
    return table


def voc_colour(index: int) -> int:
    """Return an index's colour in VOC's colour map: the bits of the index go to red, green and blue in turn."""
    red, green, blue = (sum((index >> 3 * bit + k & 1) << 7 - bit for bit in range(8)) for k in range(3))
    return red << 16 | green << 8 | blue


@dataclass
class VariantReader:
    """Read a VOC-like folder from its parts: images, instance masks, class masks and the list of classes."""

    folder: Path
    images: Path
    instances: Path
    classes: Path | None
    table_file: Path | None = None

    def read(self, listed: Path | None, reading: Reading = AS_WRITTEN) -> Converted:
        """Convert the images that the file `listed` names; if it is None, convert all images with a mask.

        If the reading allows boxes without masks, images with an XML file are converted, too.
        """
        table = read_class_table(self.table_file, reading) if self.table_file else None
        builder, finder = CocoBuilder(self.images, table.names() if table else ()), ImageFinder(self.images)
        if listed is not None:
            names = list(voc_files.read_list(listed, builder.problems).values())
        else:
            masks = (path for path in files_below(self.instances) if path.suffix.lower() in MASK_SUFFIXES)
            names = [path.relative_to(self.instances).with_suffix("").as_posix() for path in masks]
            if reading.boxes_without_masks:
                names += [Path(n).stem for n in names_in(self.folder / "Annotations", ".xml")]
        for name in dict.fromkeys(names):
            file_name = finder.find(f"{name}.jpg", finder.root)
            if file_name is None:
                builder.problems.add("missing", f"{name}.*")
            else:
                self.add_image(builder, name, file_name, table, reading)
        return builder.converted()

    def add_image(
        self, builder: CocoBuilder, name: str, file_name: str, table: ClassTable | None, reading: Reading
    ) -> None:
        """Add an image with its objects from the masks and, if there is one, from the XML file."""
        problems = builder.problems
        instances, classes = (read_mask(folder, name, problems) for folder in (self.instances, self.classes))
        has_xml, objects = (self.folder / "Annotations" / f"{name}.xml").is_file(), []
        try:
            if has_xml:
                root, size = voc_files.read_annotation(self.folder, name)
                objects = list(voc_files.read_objects(root, name, size, problems).values())
        except ValueError as error:
            problems.add("xml", f"Annotations/{name}.xml: {error}")
            return
        if instances is None:
            if not objects and (has_xml or table and table.has_colours):  # CVAT writes no masks without objects
                builder.add_image(file_name)
            elif objects and reading.boxes_without_masks and (image := builder.add_image(file_name)):
                for thing in objects:
                    builder.add_object(image, thing.name, box=thing.box, crowd=thing.difficult)
            else:
                problems.add("masks", f"SegmentationObject/{name}.png: missing or unusable")
            return
        if classes is not None and classes.size != instances.size:
            problems.add("masks", f"{name}: SegmentationObject and SegmentationClass differ in size")
            return
        image = builder.add_image(file_name, instances.size)
        if image is None:
            return
        void = VOID_COLOUR if instances.kind == "colour" else VOID_LABEL
        if reading.ignore_regions:
            voc_files.add_void(builder, image, instances.values == void)
        try:
            crops, _ = mask_images.instance_crops(
                np.where(instances.values == void, 0, instances.values), is_grey=False
            )
        except Blurred as error:
            problems.add("blurred masks", f"SegmentationObject/{name}: {error}")
            return
        names = [class_of_crop(crop, classes, table, problems, file_name) if table else None for crop in crops]
        matched = voc_files.match_masks(objects, crops, names)
        for thing, mask in zip(objects, matched):
            crops_of = [] if mask is None else [mask]
            builder.add_object(image, thing.name, crops=crops_of, box=thing.box, crowd=thing.difficult)
        taken = {id(mask) for mask in matched}
        for crop, class_name in zip(crops, names):
            if id(crop) in taken:
                continue
            if class_name is not None:
                builder.add_object(image, class_name, crops=[crop])
            elif not table:
                place = f"x {crop[0]}, y {crop[1]}"
                problems.add("no class", f"{file_name}: a mask at {place} without an object in the XML")


def read_mask(folder: Path | None, name: str, problems: Problems) -> MaskImage | None:
    """Read a mask image; None if it is missing, or if it is unusable, which is noted as a problem."""
    paths = [] if folder is None else [folder / f"{name}{suffix}" for suffix in MASK_SUFFIXES]
    for path in filter(Path.is_file, paths):
        try:
            return mask_images.read_mask_image(path)
        except (ValueError, OSError) as error:
            problems.add("masks", f"{path.parent.name}/{path.name}: {error}")
            break
    return None


def class_of_crop(
    crop: Crop, classes: MaskImage | None, table: ClassTable, problems: Problems, file_name: str
) -> str | None:
    """Return the most frequent class of an instance's pixels. If there is none, note this and return None."""
    left, top, pixels = crop
    if classes is None:
        if len(table.names()) == 1:
            return table.names()[0]
        problems.add("no class", f"{file_name}: there is no SegmentationClass for it")
        return None
    in_colours = classes.kind == "colour" or (classes.kind == "palette" and table.has_colours)
    keys, names, void = classes.values, table.by_index, VOID_LABEL
    if in_colours:
        keys, names, void = classes.colours(), table.by_colour, VOID_COLOUR
    found = keys[top : top + pixels.shape[0], left : left + pixels.shape[1]][pixels]
    numbers, counts = np.unique(found[(found != void) & (found != 0)], return_counts=True)
    if not len(numbers):
        problems.add("no class", f"{file_name}: background in SegmentationClass at x {left}, y {top}")
        return None
    order = counts.argsort()
    if len(order) > 1 and counts[order[-2]] > SECOND_CLASS * counts.sum():
        problems.add("two classes", f"{file_name}, at x {left}, y {top}")
    best = int(numbers[order[-1]])
    if best not in names:
        colour = f"{best >> 16},{best >> 8 & 255},{best & 255}" if in_colours else str(best)
        problems.add("colour", f"{file_name}: {colour}")
    return names.get(best)
