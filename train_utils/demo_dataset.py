"""Draw a small dataset in COCO 2017 layout: circles, squares and triangles that occlude each other.

Images, and annotation files with masks of the visible pixels, are drawn from a seed. The task is easy enough to train
from scratch in minutes: each class has a typical colour, and two objects of a class do not overlap.

    python -m train_utils.demo_dataset --root DIR [--num-train 440] [--num-val 80] [--seed 0]
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_codec
from tqdm import tqdm

CLASS_NAMES = ("circle", "square", "triangle")  # category ids 1..3
CORNERS = (40, 4, 3)  # per class
CLASS_HUES = (0.02, 0.35, 0.64)  # typical hue per class, in turns of the colour wheel: red, green, blue
HUE_SPREAD = 0.05  # standard deviation

VERSION = "1.6"  # increase it when the images change, so that an old dataset is not mistaken for a new one
SPLITS = ("train2017", "val2017")
IMAGE_SIDES = (128, 160)
OBJECTS_PER_IMAGE = (2, 4)
OBJECT_SIZES = (28.0, 56.0)  # square root of the bounding box's area, in pixels
MIN_VISIBLE_SHARE, MIN_VISIBLE_PIXELS = 0.8, 80
SMALLEST_WITH_HOLE, HOLE_CHANCE = 36.0, 0.3  # about a fifth of all objects have one
TILT = 0.3  # largest rotation in either direction, in radians
SUPERSAMPLING = 8


def make_demo_dataset(root: str | Path, num_train: int = 440, num_val: int = 80, seed: int = 0) -> None:
    """Draw the dataset into `root`, unless it is there already. ValueError if `root` holds anything else."""
    if num_train < 1 or num_val < 1 or seed < 0:
        raise ValueError(f"need num_train >= 1, num_val >= 1 and seed >= 0, got {num_train}, {num_val} and {seed}")
    root = Path(root).resolve()
    info = {"description": "demo shapes", "version": VERSION, "seed": seed, "num_train": num_train, "num_val": num_val}
    if is_complete(root, info):
        return
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise ValueError(
            f"{root} holds something other than the complete demo dataset of version {VERSION} with "
            f"num_train={num_train}, num_val={num_val}, seed={seed}: delete that folder or choose another"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        drawn = Path(scratch) / root.name  # moved to `root` only when it is complete
        write_dataset(drawn, info)
        try:
            if root.exists():
                root.rmdir()  # it is empty, but not every system can rename a folder onto it
            drawn.rename(root)
        except OSError:
            if not is_complete(root, info):  # another process may have drawn the same dataset meanwhile
                raise


def is_complete(root: Path, info: dict) -> bool:
    """Whether `root` holds the dataset that `info` describes, with all its images."""
    for split, count in zip(SPLITS, (info["num_train"], info["num_val"])):
        try:
            found = json.loads(annotation_file(root, split).read_text(encoding="utf-8"))["info"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if found != info or len(list((root / split).glob("*.jpg"))) != count:
            return False
    return True


def annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def write_dataset(root: Path, info: dict) -> None:
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASS_NAMES, start=1)]
    (root / "annotations").mkdir(parents=True)
    for split_index, (split, count) in enumerate(zip(SPLITS, (info["num_train"], info["num_val"]))):
        (root / split).mkdir()
        images, annotations = [], []
        for index in tqdm(range(count), desc=f"drawing {split}", disable=None):
            pixels, shapes = draw_image(np.random.default_rng([info["seed"], split_index, index]))
            image_id = split_index * 1_000_000 + index + 1
            name, (height, width, _) = f"{image_id:012d}.jpg", pixels.shape
            Image.fromarray(pixels).save(root / split / name, quality=95)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            annotations += [coco_annotation(shape, image_id, number) for number, shape in enumerate(shapes)]
        content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        annotation_file(root, split).write_text(json.dumps(content), encoding="utf-8")


@dataclass
class Shape:
    """An object in an image. Points are x, y in pixels from the image's top left corner."""

    category_id: int  # 1 + index into `CLASS_NAMES`
    outline: np.ndarray  # polygon [K, 2]
    hole: np.ndarray | None  # polygon [K, 2]
    coverage: np.ndarray  # float [H, W] in 0..1, the share of each pixel that the object covers if nothing occludes it
    rim: np.ndarray  # float [H, W] in 0..1, the same for a line along the inside of its edges
    visible: np.ndarray  # bool [H, W], the pixels that no other object occludes

    def is_recognisable(self, visible: np.ndarray) -> bool:
        """Whether the pixels `visible`, bool [H, W], are enough to see what the object is."""
        whole = polygon_area(self.outline) - (0 if self.hole is None else polygon_area(self.hole))
        return bool(visible.sum() >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * whole))

    def leaves_clear(self, other: "Shape") -> bool:
        a, b = self.outline, other.outline
        if self.category_id == other.category_id and np.all((a.min(0) < b.max(0)) & (b.min(0) < a.max(0))):
            return False
        return other.is_recognisable(other.visible & ~self.visible)


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[Shape]]:
    """Return an image, uint8 [H, W, 3], and its objects from back to front."""
    height, width = rng.integers(*IMAGE_SIDES, size=2, endpoint=True)
    if rng.random() < 0.2:
        height = width
    canvas = background(rng, height, width)
    shapes: list[Shape] = []
    for _ in range(rng.integers(*OBJECTS_PER_IMAGE, endpoint=True)):
        if (shape := random_fitting_shape(rng, shapes, height, width)) is None:
            continue
        for below in shapes:
            below.visible &= ~shape.visible
        shapes.append(shape)
        paint(rng, canvas, shape)
    return canvas.clip(0, 255).round().astype(np.uint8), shapes


def random_fitting_shape(rng: np.random.Generator, below: list[Shape], height: int, width: int) -> Shape | None:
    """Return a random shape that leaves the shapes `below` it recognisable, or None if there is no room.

    Ever smaller shapes are tried. The box of the shape must not overlap the box of another shape of its class.
    """
    size = np.exp(rng.uniform(*np.log(OBJECT_SIZES)))
    for _ in range(50):
        shape = random_shape(rng, size, height, width)
        if shape.is_recognisable(shape.visible) and all(shape.leaves_clear(other) for other in below):
            return shape
        size = max(0.95 * size, OBJECT_SIZES[0])
    return None


def random_shape(rng: np.random.Generator, size: float, height: int, width: int) -> Shape:
    """Return a shape of random class and place. `size` is the square root of its bounding box's area, in pixels."""
    category_id = int(rng.integers(len(CLASS_NAMES))) + 1
    stretch, angle = np.exp(rng.uniform(-0.2, 0.2)), rng.uniform(-TILT, TILT)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    angles = 2 * np.pi * (np.arange(CORNERS[category_id - 1]) + 0.5) / CORNERS[category_id - 1]
    centred = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (stretch, 1 / stretch) @ rotation
    centred *= size / np.sqrt(np.ptp(centred, axis=0).prod())
    overhang = 0.15 * np.ptp(centred, axis=0)  # how far it may extend beyond the image
    centre = rng.uniform(-centred.min(axis=0) - overhang, (width, height) - centred.max(axis=0) + overhang)
    has_hole = size >= SMALLEST_WITH_HOLE and rng.random() < HOLE_CHANCE
    outline, hole = centre + centred, centre + rng.uniform(0.35, 0.45) * centred if has_hole else None
    coverage, rim = rasterise(outline, hole, height, width)
    return Shape(category_id, outline, hole, coverage, rim, visible=coverage >= 0.5)


def rasterise(outline: np.ndarray, hole: np.ndarray | None, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rasterise an object: return its `coverage` and `rim`, both float [H, W], as described in `Shape`."""
    filled, edges = (Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING)) for _ in range(2))
    for points, value in ((outline, 255), (hole, 0)):
        if points is not None:
            corners = (points * SUPERSAMPLING).ravel().tolist()
            ImageDraw.Draw(filled).polygon(corners, fill=value)
            ImageDraw.Draw(edges).line(corners + corners[:2], fill=255, width=2 * SUPERSAMPLING)
    coverage, rim = (np.asarray(plane.reduce(SUPERSAMPLING), dtype=np.float32) / 255 for plane in (filled, edges))
    return coverage, rim * coverage


def polygon_area(points: np.ndarray) -> float:
    """Return the area of a polygon [K, 2] by the shoelace formula."""
    x, y = points.T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a canvas, float [H, W, 3] in 0..255: a soft pattern of two similar, muted colours, with grain."""
    colour = mixed_colour(rng, rng.random(), rng.uniform(0.0, 0.3))
    patterns = np.array([gradient, stripes, noise])
    pattern = 0.5 * rng.choice(patterns)(rng, height, width) + 0.5 * noise(rng, height, width)
    return two_tone(colour, colour + rng.uniform(-30, 30, size=3), pattern) + rng.normal(0, 4, size=(height, width, 3))


def paint(rng: np.random.Generator, canvas: np.ndarray, shape: Shape) -> None:
    """Paint an object onto the canvas [H, W, 3] in place, in a colour that contrasts with the pixels under its rim."""
    rows, columns = np.nonzero(shape.coverage)
    window = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    beneath, alpha, rim = canvas[window], shape.coverage[window], shape.rim[window]
    hue = CLASS_HUES[shape.category_id - 1]
    candidates = [mixed_colour(rng, rng.normal(hue, HUE_SPREAD), rng.uniform(0.5, 0.95)) for _ in range(6)]
    colour = max(candidates, key=lambda c: np.percentile(np.linalg.norm(beneath[rim > 0.2] - c, axis=1), 5))
    pattern = rng.choice(np.array([gradient, stripes, checks, noise]))(rng, *alpha.shape)
    surface = two_tone(colour, colour + rng.uniform(-40, 40, size=3), pattern)
    surface *= 1 + rng.choice([-0.45, 0.35]) * rim[..., None]
    canvas[window] += (surface.clip(0, 255) - beneath) * alpha[..., None]


def mixed_colour(rng: np.random.Generator, hue: float, vividness: float) -> np.ndarray:
    """Return an RGB colour [3] in 0..255 of random lightness. Hue 0 is red, and 1/3 green; vividness 0 is grey."""
    channels = np.abs((6 * hue + np.array([0, 4, 2])) % 6 - 3) - 1
    return rng.uniform(80, 250) * (1 - vividness * (1 - channels.clip(0, 1)))


def two_tone(first: np.ndarray, second: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Return colours [H, W, 3]: the first where the pattern [H, W] is 0, the second where it is 1."""
    return first + pattern[..., None] * (second.clip(0, 255) - first)


def gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a pattern [H, W] in 0..1 that rises evenly in a random direction."""
    along = distance_along(rng.uniform(0, 2 * np.pi), height, width)
    return (along - along.min()) / np.ptp(along)


def stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return soft parallel stripes [H, W] in 0..1."""
    along = distance_along(rng.uniform(0, 2 * np.pi), height, width)
    return 0.5 + 0.5 * np.sin(2 * np.pi * along / rng.uniform(5, 16))


def checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a checkerboard [H, W] of 0 and 1."""
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(6, 16)
    first, second = (np.sin(2 * np.pi * distance_along(a, height, width) / period) for a in (angle, angle + np.pi / 2))
    return (first * second > 0).astype(float)


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return smooth noise [H, W] in 0..1, at three scales."""
    total = np.zeros((height, width))
    for cell, weight in ((48, 0.5), (16, 0.3), (5, 0.2)):
        grid = rng.random((height // cell + 2, width // cell + 2)).astype(np.float32)
        total += weight * np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    return total.clip(0, 1)


def distance_along(angle: float, height: int, width: int) -> np.ndarray:
    """Return the position [H, W] of each pixel along a direction, in pixels; the angle is in radians."""
    y, x = np.ogrid[:height, :width]
    return x * np.cos(angle) + y * np.sin(angle)


def coco_annotation(shape: Shape, image_id: int, number: int) -> dict:
    """Return a shape's COCO annotation: with a polygon, or with run lengths if it has a hole or is partly occluded."""
    height, width = shape.visible.shape
    if shape.hole is None and np.array_equal(shape.visible, shape.coverage >= 0.5):
        segmentation: list | dict = [clip_to_image(shape.outline, height, width).round(2).ravel().tolist()]
        rle = mask_codec.merge(mask_codec.frPyObjects(segmentation, height, width))
    else:
        rle = mask_codec.encode(np.asfortranarray(shape.visible, dtype=np.uint8))
        segmentation = {"size": [height, width], "counts": rle["counts"].decode("ascii")}
    return {
        "id": image_id * 10 + number,
        "image_id": image_id,
        "category_id": shape.category_id,
        "segmentation": segmentation,
        "bbox": mask_codec.toBbox(rle).tolist(),
        "area": float(mask_codec.area(rle)),
        "iscrowd": 0,
    }


def clip_to_image(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the part of the polygon [K, 2] inside the image, cut at one border after another (Sutherland-Hodgman)."""
    for axis, border, inward in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept = []
        depths = inward * (points[:, axis] - border)
        after = zip(np.roll(points, -1, axis=0), np.roll(depths, -1))
        for point, depth, (following, next_depth) in zip(points, depths, after):
            if depth >= 0:
                kept.append(point)
            if depth * next_depth < 0:
                kept.append(point + (following - point) * depth / (depth - next_depth))
        points = np.array(kept)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the demo dataset: three kinds of shapes, in COCO 2017 layout.")
    parser.add_argument("--root", required=True, help="folder to draw it into")
    parser.add_argument("--num-train", type=int, default=440, help="training images (default: 440)")
    parser.add_argument("--num-val", type=int, default=80, help="validation images (default: 80)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another dataset (default: 0)")
    try:
        make_demo_dataset(**vars(parser.parse_args()))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
