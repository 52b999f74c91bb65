"""Read folders like Pascal VOC's that the devkit's reader does not open: own classes, no XML, coloured masks, no lists.

Instances come from SegmentationObject; their classes from labelmap.txt or class_names.txt with SegmentationClass, or
from the XML files by overlap.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_files.boxes import ious
from dataset_files.conversion import Converted, SplitFiles
from dataset_files.file_names import ImageFinder
from dataset_files.image_files import SPLIT_NAMES, SPLIT_ORDER, files_below, names_in
from dataset_files.layouts.coco_builder import CocoBuilder, Crop
from dataset_files.layouts.mask_images import (
    MASK_SUFFIXES,
    Blurred,
    MaskImage,
    find_mask,
    instance_crops,
    pack_colours,
    read_mask_image,
)
from dataset_files.layouts.text_files import read_lines
from dataset_files.problems import Problems, shown
from dataset_files.voc_files import (
    VOC_CLASSES,
    VOID_LABEL,
    UnusableObject,
    parse_xml,
    read_box,
    read_list,
    whole_number,
)

NO_CLASS = ("background", "_background_", "__ignore__", "ignore")
VOID_COLOUR = 0xE0E0C0  # of palette index 255 in VOC's colour map
IMAGE_FOLDERS = ("JPEGImages", "Images", "images")
SMALLEST_OVERLAP = 0.2  # IoU of an XML object's box with the box around a mask, below which they are not the same
SECOND_CLASS = 0.1  # of an instance's pixels: more is no noise at a border
PEEKED = 300  # XML files in which class names are looked for


@dataclass
class ClassTable:
    """Names of classes by the index and by the colour (0xRRGGBB) that they have in masks."""

    by_index: dict[int, str] = field(default_factory=dict)
    by_colour: dict[int, str] = field(default_factory=dict)
    has_colours: bool = False  # the palette of a mask counts, not its indices

    def names(self) -> list[str]:
        return list(dict.fromkeys(self.by_index.values()))

    def keys(self, masks: MaskImage) -> tuple[np.ndarray, dict[int, str]]:
        """int64 [H, W]: indices or colours of a class mask, and the names that they stand for."""
        if masks.kind == "colour" or (masks.kind == "palette" and self.has_colours):
            return masks.colours(), self.by_colour
        return masks.values, self.by_index


@dataclass
class XMLObject:
    name: str
    box: tuple[float, float, float, float]  # x1y1x2y2, 0-based, the right and lower edges beyond the last pixel
    difficult: bool


def find(root: Path) -> list[SplitFiles]:
    """The splits of a folder with SegmentationObject; [] if it is of another layout or the devkit's own.

    Raises:
        ValueError: nothing in the folder names the classes.
    """
    folder = variant_folder(root)
    if folder is None or is_standard(root):
        return []
    has_xml = any(name.endswith(".xml") for name in names_in(folder / "Annotations"))
    if class_table_file(folder) is None and not has_xml:
        expected = "labelmap.txt, class_names.txt or Annotations/*.xml"
        raise ValueError(f"{folder}: nothing names the classes; expected {expected}")
    images = image_folder(folder)
    lists = find_lists(folder)
    sources: dict[str, Path | None] = {**lists} or {"": None}
    return [
        SplitFiles(name, path or instances_folder(folder), images, partial(read_split, folder, path), inputs_of(folder))
        for name, path in sources.items()
    ]


def variant_folder(root: Path) -> Path | None:
    """The folder with SegmentationObject that `root` is, or that lies in it or in its VOCdevkit."""
    places = (root, root / "VOCdevkit")
    years = [place / name for place in places for name in sorted(names_in(place)) if name.startswith("VOC")]
    return next((folder for folder in (root, *years) if masks_folder(folder, "SegmentationObject")), None)


def instances_folder(folder: Path) -> Path:
    """SegmentationObject in a folder that `variant_folder` returned."""
    return masks_folder(folder, "SegmentationObject") or folder / "SegmentationObject"


def masks_folder(folder: Path, name: str) -> Path | None:
    """SegmentationObject or SegmentationClass; older labelme2voc keeps arrays there and the images in ...PNG."""
    for candidate in (folder / f"{name}PNG", folder / name):
        if any(entry.lower().endswith(MASK_SUFFIXES) or (candidate / entry).is_dir() for entry in names_in(candidate)):
            return candidate
    return None


def image_folder(folder: Path) -> Path:
    return next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), folder)


def class_table_file(folder: Path) -> Path | None:
    return next((p for p in (folder / "labelmap.txt", folder / "class_names.txt") if p.is_file()), None)


def is_standard(root: Path) -> bool:
    """Whether the devkit's own reader takes a folder: XML files with its twenty classes, palette PNGs, lists, JPEGs."""
    folder = variant_folder(root)
    if folder is None or class_table_file(folder) is not None:
        return False
    lists = [folder / "ImageSets" / "Segmentation" / f"{name}.txt" for name in ("train", "val")]
    if not all(path.is_file() for path in lists):
        return False
    try:
        names = [name for path in lists for name in read_list(path, Problems()).values()]
    except ValueError:
        return True  # the devkit's reader says what is wrong with the list
    names = names[:: max(len(names) // PEEKED, 1)]
    has_xml = any((folder / "Annotations" / f"{name}.xml").is_file() for name in names)
    return has_xml and all(looks_standard(folder, name) for name in names) and has_palette(folder, names)


def looks_standard(folder: Path, name: str) -> bool:
    """Whether one image has an XML file without foreign classes, and is a .jpg, as far as its files are there."""
    try:
        with open(folder / "Annotations" / f"{name}.xml", "rb") as file:
            text = file.read(1 << 16)
    except FileNotFoundError:
        return True  # the devkit's reader names it, unless all are missing
    except OSError:
        return False
    objects = re.findall(rb"<object>(.*?)</object>", re.sub(rb"(?s)<part>.*?</part>", b"", text), re.DOTALL)
    found = [text for one in objects for text in re.findall(rb"<name>\s*([^<]*?)\s*</name>", one)]
    is_jpeg = (folder / "JPEGImages" / f"{name}.jpg").is_file()
    return is_jpeg and all(one.decode(errors="replace") in VOC_CLASSES for one in found)


def has_palette(folder: Path, names: Iterable[str]) -> bool:
    """Whether the first mask that exists holds indices."""
    for name in names:
        path = folder / "SegmentationObject" / f"{name}.png"
        if path.is_file():
            try:
                with Image.open(path, formats=["PNG"]) as picture:
                    return picture.mode in ("P", "L")
            except Exception:  # a broken file makes Pillow raise anything; the devkit's reader names it
                return True
    return True


def find_lists(folder: Path) -> dict[str, Path]:
    """The lists of images: split name -> file; only "" where there is one list of another name, such as default.txt."""
    for place in (folder / "ImageSets" / "Segmentation", folder / "ImageSets" / "Main"):
        lists = {Path(name).stem.lower(): place / name for name in sorted(names_in(place)) if name.endswith(".txt")}
        splits = {SPLIT_NAMES[stem]: path for stem, path in lists.items() if stem in SPLIT_NAMES}
        if splits:
            return {name: splits[name] for name in SPLIT_ORDER if name in splits}
        for stem in ("trainval", "default", *lists):
            if stem in lists:
                return {"": lists[stem]}
    return {}


def inputs_of(folder: Path) -> list[Path]:
    """All that is read besides the list of images."""
    places = [masks_folder(folder, name) for name in ("SegmentationObject", "SegmentationClass")]
    places += [class_table_file(folder), folder / "Annotations", image_folder(folder)]
    return [path for path in places if path is not None and path.exists()]


def read_class_table(folder: Path) -> ClassTable | None:
    """The classes of labelmap.txt or class_names.txt; None without either.

    Raises:
        ValueError: a line is not understood.
    """
    path = class_table_file(folder)
    if path is None:
        return None
    lines = [line for line in read_lines(path) if line]
    if path.name == "labelmap.txt":
        return read_label_map([line for line in lines if not line.startswith("#")], path)
    lines = lines[1:] if lines[:1] == ["__ignore__"] else lines
    first = 0 if lines and lines[0] in NO_CLASS else 1
    names = {k: name for k, name in enumerate(lines, start=first) if name not in NO_CLASS}
    return ClassTable(names, {voc_colour(k): name for k, name in names.items()})


def read_label_map(lines: list[str], path: Path) -> ClassTable:
    """CVAT's lines `name:red,green,blue:parts:actions`, the colours as they stand in masks."""
    table = ClassTable(has_colours=True)
    for number, line in enumerate(lines):
        match = re.fullmatch(r"(.+?):(\d{1,3}),(\d{1,3}),(\d{1,3})(?::[^:]*){0,2}", line)
        if match is None or max(map(int, match.groups()[1:])) > 255:
            raise ValueError(f"{path}: expected lines such as 'cat:128,0,0::', not {shown(line)}")
        name, colour = match.group(1), int(pack_colours(np.array([int(v) for v in match.groups()[1:]])))
        if name not in NO_CLASS:
            if colour in table.by_colour:
                raise ValueError(f"{path}: {table.by_colour[colour]!r} and {name!r} have the same colour")
            table.by_index[number] = table.by_colour[colour] = name
    return table


def voc_colour(index: int) -> int:
    """The colour of a palette index in VOC's colour map: its bits dealt to red, green and blue, the highest first."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0] << 16 | channels[1] << 8 | channels[2]


def read_split(folder: Path, listed: Path | None) -> Converted:
    """The images of a list, or all that have a mask or an XML file."""
    table = read_class_table(folder)
    builder = CocoBuilder(image_folder(folder), table.names() if table else ())
    finder = ImageFinder(builder.image_folder)
    if listed is not None:
        names = list(read_list(listed, builder.problems).values())
    else:
        masks = instances_folder(folder)
        names = [p.relative_to(masks).with_suffix("").as_posix() for p in files_below(masks) if is_mask_name(p.name)]
    for name in dict.fromkeys(names):
        file_name = finder.find(f"{name}.jpg", finder.root)
        if file_name is None:
            builder.problems.add("missing", f"{name}.*")
        else:
            add_voc_image(builder, folder, name, file_name, table)
    return builder.converted()


def is_mask_name(name: str) -> bool:
    return name.lower().endswith(MASK_SUFFIXES)


def add_voc_image(builder: CocoBuilder, folder: Path, name: str, file_name: str, table: ClassTable | None) -> None:
    """Add an image with its objects from the masks, and from the XML file where there is one."""
    instances, classes = (
        read_masks(builder, masks_folder(folder, kind), name) for kind in ("SegmentationObject", "SegmentationClass")
    )
    try:
        xml_objects = read_xml(builder, folder, name)
    except ValueError as error:
        builder.problems.add("xml", f"Annotations/{name}.xml: {error}")
        return
    if instances is None:
        # CVAT writes no masks where there is no object.
        if not xml_objects and (xml_objects is not None or (table and table.has_colours)):
            builder.add_image(file_name)
        else:
            builder.problems.add("masks", f"SegmentationObject/{name}.png: missing or unusable")
        return
    if classes is not None and classes.size != instances.size:
        builder.problems.add("masks", f"{name}: SegmentationObject and SegmentationClass differ in size")
        return
    image = builder.add_image(file_name, instances.size)
    if image is None:
        return
    void = VOID_COLOUR if instances.kind == "colour" else VOID_LABEL
    values = np.where(instances.values == void, 0, instances.values)
    try:
        crops, _ = instance_crops(values, is_grey=False)
    except Blurred as error:
        builder.problems.add("blurred masks", f"SegmentationObject/{name}: {error}")
        return
    names: list[str | None] = [None] * len(crops)
    if table:
        names = [class_of_crop(builder, crop, classes, table, file_name) for crop in crops]
    if xml_objects is not None:
        crops, names = add_xml_objects(builder, image, xml_objects, crops, names)
    for (left, top, crop), class_name in zip(crops, names):
        if class_name is None and not table:
            builder.problems.add("no class", f"{file_name}: a mask at x {left}, y {top} without an object in the XML")
        elif class_name is not None:
            builder.add_object(image, class_name, crops=[(left, top, crop)])


def read_masks(builder: CocoBuilder, folder: Path | None, name: str) -> MaskImage | None:
    """One mask image; None if there is none or it cannot be used, which is noted."""
    path = find_mask(folder, name) if folder else None
    if folder is None or path is None:
        return None
    try:
        return read_mask_image(path)
    except (ValueError, OSError) as error:
        builder.problems.add("masks", f"{folder.name}/{path.name}: {error}")
        return None


def class_of_crop(
    builder: CocoBuilder, crop: Crop, classes: MaskImage | None, table: ClassTable, file_name: str
) -> str | None:
    """The class that most pixels of an instance have; None if that is none, which is noted."""
    left, top, pixels = crop
    if classes is None:
        if len(table.names()) == 1:
            return table.names()[0]
        builder.problems.add("no class", f"{file_name}: there is no SegmentationClass for it")
        return None
    keys, names = table.keys(classes)
    void = VOID_COLOUR if names is table.by_colour else VOID_LABEL
    found = keys[top : top + pixels.shape[0], left : left + pixels.shape[1]][pixels]
    numbers, counts = np.unique(found[(found != void) & (found != 0)], return_counts=True)
    if not len(numbers):
        builder.problems.add("no class", f"{file_name}: background in SegmentationClass at x {left}, y {top}")
        return None
    order = counts.argsort()
    if len(order) > 1 and counts[order[-2]] > SECOND_CLASS * counts.sum():
        builder.problems.add("two classes", f"{file_name}, at x {left}, y {top}")
    best = int(numbers[order[-1]])
    if best not in names:
        colour = f"{best >> 16},{best >> 8 & 255},{best & 255}" if names is table.by_colour else str(best)
        builder.problems.add("colour", f"{file_name}: {colour}")
    return names.get(best)


def read_xml(builder: CocoBuilder, folder: Path, name: str) -> list[XMLObject] | None:
    """The objects of an image's XML file; None if there is no such file.

    Raises:
        ValueError: the file cannot be used.
    """
    path = folder / "Annotations" / f"{name}.xml"
    if not path.is_file():
        return None
    root = parse_xml(path)
    size = (whole_number(root, "size/height"), whole_number(root, "size/width"))
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        class_name = (element.findtext("name") or "").strip()
        try:
            if not class_name:
                raise UnusableObject("no class", "has no name")
            box = read_box(element, class_name, size)
        except UnusableObject as error:
            builder.problems.add(error.kind, f"Annotations/{name}.xml, object {number}: {error}")
        else:
            objects.append(XMLObject(class_name, box, (element.findtext("difficult") or "0").strip() == "1"))
    return objects


def add_xml_objects(
    builder: CocoBuilder, image: dict, objects: list[XMLObject], crops: list[Crop], names: list[str | None]
) -> tuple[list[Crop], list[str | None]]:
    """Add the objects of an XML file, each with the mask that its box covers best.

    Returns:
        The crops that no object has, and their classes.
    """
    left = dict(enumerate(crops))
    for thing, k in match_boxes(objects, crops, names):
        mask = [] if k is None else [left.pop(k)]
        builder.add_object(image, thing.name, crops=mask, box=thing.box, crowd=thing.difficult)
    return list(left.values()), [names[k] for k in left]


def match_boxes(
    objects: list[XMLObject], crops: list[Crop], names: list[str | None]
) -> Iterator[tuple[XMLObject, int | None]]:
    """Each object with the number of its crop or None: pairs of one class, where known, the best overlap first."""
    boxes = np.array([thing.box for thing in objects], dtype=np.float64).reshape(-1, 1, 4)
    extents = [(x, y, x + crop.shape[1], y + crop.shape[0]) for x, y, crop in crops]
    overlaps = ious(boxes, np.array(extents, dtype=np.float64).reshape(1, -1, 4)).tolist()
    pairs = [
        (-overlaps[i][k], i, k)
        for i, thing in enumerate(objects)
        for k in range(len(crops))
        if overlaps[i][k] >= SMALLEST_OVERLAP and names[k] in (None, thing.name)
    ]
    matched: dict[int, int] = {}
    for _, i, k in sorted(pairs):
        if i not in matched and k not in matched.values():
            matched[i] = k
    yield from ((thing, matched.get(i)) for i, thing in enumerate(objects))
