"""Write the same six images with eight objects in the layout of each labelling tool, with NumPy, Pillow and strings.

Nothing of the readers is used here. All corners lie on whole pixels, so that an outline and its pixels are the same
mask; a hole or a second part is reached by a corridor without width where a layout has one outline per object.
"""

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # x1, y1, x2, y2, the last two beyond the last pixel

# VOC's colour map: the first colours, as every description of it lists them.
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
VOID = (224, 224, 192)
CLASSES = ("cat", "dog", "traffic light")


@dataclass
class Thing:
    """An object: what its rectangles cover, without its hole."""

    class_name: str
    parts: Sequence[Box]
    hole: Box | None = None
    crowd: bool = False

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """bool [H, W]."""
        plane = np.zeros(size, dtype=bool)
        for x1, y1, x2, y2 in self.parts:
            plane[y1:y2, x1:x2] = True
        if self.hole:
            x1, y1, x2, y2 = self.hole
            plane[y1:y2, x1:x2] = False
        return plane

    def box(self) -> list[int]:
        """x, y, width, height."""
        x1, y1 = min(p[0] for p in self.parts), min(p[1] for p in self.parts)
        return [x1, y1, max(p[2] for p in self.parts) - x1, max(p[3] for p in self.parts) - y1]

    def outline(self) -> list[tuple[int, int]]:
        """One outline for all of it: from each ring to the next and back over a corridor without width."""
        first, *others = [corners(box) for box in self.parts]
        points = [*first, first[0]]
        for ring in others:
            points += [*ring, ring[0], first[0]]
        if self.hole:
            ring = corners(self.hole)[::-1]
            points += [*ring, ring[0], first[0]]
        return points[:-1]


@dataclass
class Sample:
    name: str  # of the image file
    size: tuple[int, int]  # height, width
    things: list[Thing] = field(default_factory=list)

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        rows, columns = np.indices(self.size)
        image = np.stack((rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256), axis=-1).astype(np.uint8)
        for number, thing in enumerate(self.things):
            image[thing.mask(self.size)] = COLOURS[1 + number % 6]
        return image


SAMPLES = [
    Sample("a.jpg", (60, 80), [Thing("cat", [(10, 5, 50, 45)], (20, 15, 30, 35)), Thing("dog", [(60, 2, 79, 20)])]),
    Sample("b.png", (50, 50), [Thing("traffic light", [(3, 4, 13, 20), (30, 25, 45, 44)])]),
    Sample("c c.jpg", (40, 90)),
    Sample("d.jpg", (64, 48), [Thing("dog", [(0, 0, 48, 12)]), Thing("dog", [(5, 20, 15, 60), (15, 30, 40, 50)])]),
    Sample("e.jpeg", (70, 70), [Thing("cat", [(20, 20, 60, 64)], hole=(25, 25, 55, 60))]),
    Sample("f.bmp", (30, 100), [Thing("cat", [(1, 1, 9, 9)]), Thing("traffic light", [(50, 3, 95, 28)], crowd=True)]),
]


def corners(box: Box) -> list[tuple[int, int]]:
    x1, y1, x2, y2 = box
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def write_image(path: Path, sample: Sample) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample.pixels()).save(path)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def png_base64(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# ------------------------------------------------------------------------------------------------------------ labelme


def labelme_shape(label: str, kind: str, points: list, group: int | None = None, mask: str | None = None) -> dict:
    shape = {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}}
    return shape | ({"mask": mask} if mask else {})


def labelme_shapes(sample: Sample) -> list[dict]:
    """Holes as mask shapes, several parts as a group, the rest as rectangles with corners in any order."""
    shapes = []
    for number, thing in enumerate(sample.things):
        if thing.hole:
            x, y, width, height = thing.box()
            crop = thing.mask(sample.size)[y : y + height, x : x + width]
            ends = [[float(x), float(y)], [x + width - 1.0, y + height - 1.0]]
            shapes.append(labelme_shape(thing.class_name, "mask", ends, mask=png_base64(crop.astype(np.uint8) * 255)))
        elif len(thing.parts) > 1:
            shapes += [labelme_shape(thing.class_name, "polygon", corners(box), number) for box in thing.parts]
        else:
            x1, y1, x2, y2 = thing.parts[0]
            shapes.append(labelme_shape(thing.class_name, "rectangle", [[x2, y1], [x1, y2]]))
    return shapes


def write_labelme(root: Path, samples: Sequence[Sample]) -> None:
    for sample in samples:
        write_image(root / sample.name, sample)
        height, width = sample.size
        content = {"version": "5.4.1", "flags": {}, "shapes": labelme_shapes(sample), "imagePath": sample.name}
        content |= {"imageData": None, "imageHeight": height, "imageWidth": width}
        write_json(root / f"{sample.stem}.json", content)


def write_labelme_split(root: Path, samples: Sequence[Sample]) -> None:
    write_labelme(root / "train" / "deeper", samples[:4])
    write_labelme(root / "val", samples[4:])


# ------------------------------------------------------------------------------------------------------ ISAT and CVAT


def write_isat(root: Path, samples: Sequence[Sample]) -> None:
    """Several parts as a group; an outline with a corridor for a hole."""
    for sample in samples:
        write_image(root / sample.name, sample)
        objects = []
        for number, thing in enumerate(sample.things, start=1):
            for outline in [thing.outline()] if thing.hole else map(corners, thing.parts):
                entry = {"category": thing.class_name, "group": number, "segmentation": outline, "layer": 1.0}
                objects.append(entry | {"bbox": [], "area": 0, "iscrowd": thing.crowd, "note": ""})
        info = {"description": "ISAT", "folder": "C:\\photos", "name": sample.name, "depth": 3, "note": ""}
        info |= {"height": sample.size[0], "width": sample.size[1]}
        write_json(root / f"{sample.stem}.json", {"info": info, "objects": objects})


def cvat_shapes(sample: Sample, label: str = ' label="{}"', extra: str = "") -> list[str]:
    """Holes as masks, several parts as a group of polygons, the rest as boxes."""
    shapes = []
    for number, thing in enumerate(sample.things, start=1):
        x, y, width, height = thing.box()
        start = label.format(thing.class_name)
        if thing.hole:
            flat = thing.mask(sample.size)[y : y + height, x : x + width].reshape(-1)
            edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
            counts = ", ".join(map(str, np.diff(edges, prepend=0)))
            place = f'left="{x}" top="{y}" width="{width}" height="{height}"'
            shapes.append(f'<mask{start}{extra} rle="{counts}" {place}/>')
        elif len(thing.parts) > 1:
            for box in thing.parts:
                points = ";".join(f"{px:.2f},{py:.2f}" for px, py in corners(box))
                shapes.append(f'<polygon{start}{extra} points="{points}" group_id="{number}"/>')
        else:
            place = f'xtl="{x}" ytl="{y}" xbr="{x + width}" ybr="{y + height}"'
            shapes.append(f'<box{start}{extra} {place}><attribute name="age">3</attribute></box>')
    return shapes


def write_cvat_xml(path: Path, entries: str) -> None:
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    write_text(path, f'<?xml version="1.0"?><annotations><version>1.1</version>{meta}{entries}</annotations>')


def write_cvat_images(root: Path, samples: Sequence[Sample]) -> None:
    """A project with subsets."""
    entries = ""
    for k, sample in enumerate(samples):
        subset = "Train" if k < 4 else "Validation"
        write_image(root / "images" / subset / sample.name, sample)
        size = f'width="{sample.size[1]}" height="{sample.size[0]}"'
        entries += f'<image id="{k}" name="{sample.name}" subset="{subset}" task_id="{k}" {size}>'
        entries += "".join(cvat_shapes(sample)) + '<tag label="cat"/></image>'
    write_cvat_xml(root / "annotations.xml", entries)


# --------------------------------------------------------------------------------------------------------------- YOLO


def yolo_lines(sample: Sample) -> str:
    height, width = sample.size
    lines = []
    for thing in sample.things:
        numbers = [f"{x / width:.6f} {y / height:.6f}" for x, y in thing.outline()]
        lines.append(f"{CLASSES.index(thing.class_name)} {' '.join(numbers)}\n")
    return "".join(lines)


def write_yolo_images(root: Path, samples: Sequence[Sample], images: str, labels: str) -> None:
    """No label file for an image without objects."""
    for sample in samples:
        write_image(root / images / sample.name, sample)
        if sample.things:
            write_text(root / labels / f"{sample.stem}.txt", yolo_lines(sample))


def write_yolo(root: Path, samples: Sequence[Sample]) -> None:
    """Ultralytics' way."""
    write_yolo_images(root, samples[:4], "images/train", "labels/train")
    write_yolo_images(root, samples[4:], "images/val", "labels/val")
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(CLASSES))
    folders = "path: /datasets/elsewhere\ntrain: images/train  # folder\nval: images/val\ntest:\n"
    write_text(root / "mine.yaml", f"# classes\n{folders}names:\n{names}")


def write_roboflow_yolo(root: Path, samples: Sequence[Sample]) -> None:
    write_yolo_images(root, samples[:4], "train/images", "train/labels")
    write_yolo_images(root, samples[4:], "valid/images", "valid/labels")
    text = f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 3\nnames: {list(CLASSES)}\n"
    write_text(root / "data.yaml", text + "\nroboflow:\n  workspace: x\n  license: CC BY 4.0\n")


# ---------------------------------------------------------------------------------------------------------------- VIA


def via_region(thing: Thing, attributes: dict) -> dict:
    if len(thing.parts) == 1 and not thing.hole:
        x, y, width, height = thing.box()
        shape = {"name": "rect", "x": x, "y": y, "width": width, "height": height}
    else:
        xs, ys = zip(*thing.outline())
        shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    return {"shape_attributes": shape, "region_attributes": attributes}


def write_via1(root: Path, samples: Sequence[Sample]) -> None:
    """Regions in a dict, as Matterport's balloons have them, but with a class."""
    for split, some in (("train", samples[:4]), ("val", samples[4:])):
        content = {}
        for sample in some:
            path = root / split / sample.name
            write_image(path, sample)
            regions = {str(k): via_region(thing, {"class": thing.class_name}) for k, thing in enumerate(sample.things)}
            entry = {"fileref": "", "size": path.stat().st_size, "filename": sample.name, "base64_img_data": ""}
            content[f"{sample.name}{path.stat().st_size}"] = entry | {"file_attributes": {}, "regions": regions}
        write_json(root / split / "via_region_data.json", content)


def write_via2(root: Path, samples: Sequence[Sample]) -> None:
    """A project; the class is a checkbox."""
    metadata = {}
    for sample in samples:
        path = root / "photos" / sample.name
        write_image(path, sample)
        regions = [via_region(t, {"kind": {name: name == t.class_name for name in CLASSES}}) for t in sample.things]
        entry = {"filename": sample.name, "size": path.stat().st_size, "regions": regions, "file_attributes": {}}
        metadata[f"{sample.name}{path.stat().st_size}"] = entry
    settings = {"core": {"default_filepath": "./photos/"}, "project": {"name": "p"}}
    attributes = {"region": {"kind": {"type": "checkbox", "options": dict.fromkeys(CLASSES, "")}}, "file": {}}
    content = {"_via_settings": settings, "_via_img_metadata": metadata, "_via_attributes": attributes}
    write_json(root / "via_project_1Jan2024.json", content)


# -------------------------------------------------------------------------------------------------- masks as pictures


def instance_values(sample: Sample) -> np.ndarray:
    """uint8 [H, W]: the number of the object from 1, 0 elsewhere."""
    plane = np.zeros(sample.size, dtype=np.uint8)
    for number, thing in enumerate(sample.things, start=1):
        plane[thing.mask(sample.size)] = number
    return plane


def class_values(sample: Sample) -> np.ndarray:
    """The same with the class's number."""
    plane = np.zeros(sample.size, dtype=np.uint8)
    for thing in sample.things:
        plane[thing.mask(sample.size)] = CLASSES.index(thing.class_name) + 1
    return plane


def save_palette(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values).convert("L")
    picture.putpalette([v for colour in COLOURS for v in colour] + [0] * 3 * (255 - len(COLOURS)) + list(VOID))
    picture.save(path)


def save_colours(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(COLOURS, dtype=np.uint8)[values]).save(path)


def write_masks(root: Path, samples: Sequence[Sample], save: Callable[[Path, np.ndarray], None]) -> None:
    for sample in samples:
        write_image(root / "JPEGImages" / sample.name, sample)
        save(root / "SegmentationObject" / f"{sample.stem}.png", instance_values(sample))
        save(root / "SegmentationClass" / f"{sample.stem}.png", class_values(sample))


def write_labelme2voc(root: Path, samples: Sequence[Sample]) -> None:
    write_masks(root, samples, save_palette)
    write_text(root / "class_names.txt", "\n".join(("_background_", *CLASSES)) + "\n")
    write_text(root / "SegmentationClassVisualization" / "a.jpg", "")


def write_cvat_masks(root: Path, samples: Sequence[Sample]) -> None:
    write_masks(root, samples, save_colours)
    colours = dict(zip(("background", *CLASSES), COLOURS))
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in sorted(colours.items())]
    write_text(root / "labelmap.txt", "\n".join(("# label:color_rgb:parts:actions", *lines)) + "\n")
    write_text(root / "ImageSets" / "Segmentation" / "default.txt", "".join(f"{s.stem}\n" for s in samples))


def voc_xml(sample: Sample) -> str:
    height, width = sample.size
    objects = ""
    for thing in sample.things[::-1]:
        x, y, w, h = thing.box()
        box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        name = f"<name>{thing.class_name}</name><difficult>{int(thing.crowd)}</difficult>"
        objects += f"<object>{name}<bndbox>{box}</bndbox></object>"
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{sample.name}</filename>{size}{objects}</annotation>"


def write_own_voc(root: Path, samples: Sequence[Sample]) -> None:
    """The devkit's layout with own classes, which only the XML files name."""
    folder = root / "VOCdevkit" / "VOC2012"
    write_masks(folder, samples, save_palette)
    for sample in samples:
        write_text(folder / "Annotations" / f"{sample.stem}.xml", voc_xml(sample))
    for split, some in (("train", samples[:4]), ("val", samples[4:])):
        write_text(folder / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{s.stem}\n" for s in some))


def write_penn_fudan(root: Path, samples: Sequence[Sample]) -> None:
    for sample in samples:
        write_image(root / "PNGImages" / sample.name, sample)
        (root / "PedMasks").mkdir(exist_ok=True)
        Image.fromarray(instance_values(sample)).save(root / "PedMasks" / f"{sample.stem}_mask.png")


def write_class_masks(root: Path, samples: Sequence[Sample]) -> None:
    """A folder of masks per class, 16 bit."""
    for sample in samples:
        write_image(root / "images" / sample.name, sample)
        for name in CLASSES:
            instances = instance_values(sample).astype(np.uint16) * 300
            plane = np.where(class_values(sample) == CLASSES.index(name) + 1, instances, 0).astype(np.uint16)
            (root / "masks" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane).save(root / "masks" / name / f"{sample.stem}.png")


def write_object_masks(root: Path, samples: Sequence[Sample]) -> None:
    """A mask file per object."""
    for sample in samples:
        write_image(root / "images" / sample.name, sample)
        (root / "masks" / sample.stem).mkdir(parents=True)
        for number, thing in enumerate(sample.things):
            mask = thing.mask(sample.size).astype(np.uint8) * 255
            Image.fromarray(mask).save(root / "masks" / sample.stem / f"{number}.png")
        if not sample.things:
            Image.fromarray(np.zeros(sample.size, np.uint8)).save(root / "masks" / sample.stem / "none.png")


def write_image_folders(root: Path, samples: Sequence[Sample]) -> None:
    """A folder per image with images/ and masks/ in it, as in the Data Science Bowl 2018, the masks named at random."""
    write_object_masks(root / "flat", samples)
    for sample in samples:
        for kind, old in (("images", f"images/{sample.name}"), ("masks", f"masks/{sample.stem}")):
            new = root / sample.stem / kind / (sample.name if kind == "images" else "")
            new.parent.mkdir(parents=True, exist_ok=True)
            (root / "flat" / old).rename(new)
    for name in ("images", "masks", "."):
        (root / "flat" / name).rmdir()


WRITERS: dict[str, Callable[[Path, Sequence[Sample]], None]] = {
    "labelme": write_labelme,
    "labelme in split folders": write_labelme_split,
    "ISAT": write_isat,
    "CVAT for images": write_cvat_images,
    "YOLO": write_yolo,
    "YOLO by Roboflow": write_roboflow_yolo,
    "VIA 1": write_via1,
    "VIA 2": write_via2,
    "labelme2voc": write_labelme2voc,
    "CVAT segmentation mask": write_cvat_masks,
    "VOC with own classes": write_own_voc,
    "Penn-Fudan": write_penn_fudan,
    "masks per class": write_class_masks,
    "masks per object": write_object_masks,
    "Data Science Bowl 2018": write_image_folders,
}
# What a layout cannot hold.
SPLIT = ("labelme in split folders", "CVAT for images", "YOLO", "YOLO by Roboflow", "VIA 1", "VOC with own classes")
ONE_CLASS = {"Penn-Fudan": "pedestrian", "masks per object": "object", "Data Science Bowl 2018": "object"}
WITH_CROWDS = ("VOC with own classes", "ISAT")
