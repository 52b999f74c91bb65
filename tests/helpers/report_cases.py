"""Small scenes for the report whose numbers can be worked out by hand, and random ones to compare with COCO's code."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from report.eval_data import EvalData, make_eval_data

IMAGE, SIZE = 7, 200  # id, and both sides in pixels
CAT, DOG, BIRD = 1, 2, 3
NAMES = {CAT: "cat", DOG: "dog", BIRD: "bird"}

# Class, x, y, width, height. In the order of the annotation ids 1 to 6.
OBJECTS = (
    (CAT, 0, 0, 40, 40),
    (DOG, 60, 0, 40, 40),
    (DOG, 120, 0, 40, 40),
    (BIRD, 0, 60, 40, 40),
    (CAT, 0, 120, 40, 40),
    (BIRD, 60, 120, 40, 40),
)
# Class, score and box; what they are, and the IoU with what.
DETECTIONS = (
    (CAT, 0.90, 0, 0, 40, 40),  # right, the first cat
    (CAT, 0.80, 0, 0, 40, 32),  # duplicate: 0.8 with the first cat
    (CAT, 0.70, 60, 0, 40, 40),  # class: 1 with the first dog
    (DOG, 0.60, 140, 0, 40, 40),  # location: 1/3 with the second dog
    (CAT, 0.50, 20, 60, 40, 40),  # both: 1/3 with the first bird, which nothing else finds: it is missed
    (CAT, 0.45, 0, 120, 40, 40),  # right, the second cat
    (BIRD, 0.40, 150, 150, 20, 20),  # background
    (BIRD, 0.30, 60, 120, 40, 40),  # right, the second bird
)


def every_kind_of_error(names: dict[int, str] = NAMES, file_name: str = "7.jpg") -> tuple[dict, dict[str, list[dict]]]:
    """One image, three classes, each of TIDE's kinds of error once: ground truth, and results as boxes and masks."""
    annotations = [
        {"id": number, "image_id": IMAGE, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0,
         "segmentation": [corners(*box)]}
        for number, (label, *box) in enumerate(OBJECTS, start=1)
    ]  # fmt: skip
    truth = {
        "images": [{"id": IMAGE, "width": SIZE, "height": SIZE, "file_name": file_name}],
        "categories": [{"id": label, "name": name} for label, name in names.items()],
        "annotations": annotations,
    }
    common = [({"image_id": IMAGE, "category_id": label, "score": score}, box) for label, score, *box in DETECTIONS]
    results = {
        "bbox": [entry | {"bbox": box} for entry, box in common],
        "segm": [entry | {"segmentation": rectangle_code(*box)} for entry, box in common],
    }
    return truth, results


def eval_data_of(truth: dict, results: dict[str, list[dict]], image: Path | None = None) -> EvalData:
    return make_eval_data(truth, results, {} if image is None else {IMAGE: image})


def corners(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def rectangle_code(x: int, y: int, width: int, height: int, side: int = SIZE) -> dict:
    """The uncompressed run-length code of a rectangle in a square image."""
    counts = [x * side + y] + [height, side - height] * (width - 1) + [height]
    return {"size": [side, side], "counts": [*counts, side * side - sum(counts)]}


def draw_image(path: Path, side: int = SIZE) -> Path:
    """A JPEG of the size of the hand-made image, with a colour gradient."""
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(90)), axis=2)
    Image.fromarray(pixels).save(path)
    return path


def random_truth_and_results(seed: int, images: int = 6, classes: int = 3) -> tuple[dict, list[dict]]:
    """Boxes with crowds, equal scores and, in the first image, more than 100 detections of a class."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(100)[:images].tolist()
    truth: dict = {
        "images": [{"id": i, "width": SIZE, "height": SIZE, "file_name": f"{i}.jpg"} for i in ids],
        "categories": [{"id": 10 * k + 1, "name": f"class {k}"} for k in range(classes)],
        "annotations": [],
    }
    results = []
    for place, image in enumerate(ids):
        for _ in range(int(rng.integers(0, 9))):
            box = random_box(rng)
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": random_class(rng, classes),
                 "bbox": box, "area": box[2] * box[3], "iscrowd": int(rng.random() < 0.15)}
            )  # fmt: skip
        for a in [a for a in truth["annotations"] if a["image_id"] == image]:
            for _ in range(int(rng.integers(0, 4))):
                moved = [round(v + float(rng.normal(0, 4)), 1) for v in a["bbox"]]
                label = a["category_id"] if rng.random() < 0.8 else random_class(rng, classes)
                results.append(detection(rng, image, label, [*moved[:2], *np.maximum(moved[2:], 1).tolist()]))
        others = 130 if place == 0 else 5
        results += [detection(rng, image, 1, random_box(rng)) for _ in range(others)]
    return json.loads(json.dumps(truth)), results


def detection(rng: np.random.Generator, image: int, label: int, box: list[float]) -> dict:
    return {"image_id": image, "category_id": label, "score": round(float(rng.random()), 1), "bbox": box}


def random_class(rng: np.random.Generator, classes: int) -> int:
    return int(10 * rng.integers(classes) + 1)


def random_box(rng: np.random.Generator) -> list[float]:
    x, y = rng.integers(0, SIZE - 20, 2).tolist()
    width, height = rng.integers(8, 80, 2).tolist()
    return [x, y, min(width, SIZE - x), min(height, SIZE - y)]
