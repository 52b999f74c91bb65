"""Find instances in pictures and draw them.

    python predict.py                                             # newest weights, a picture of their validation set
    python predict.py --weights-path save_weights/model_25.pth --img-path photo.jpg
    python predict.py --weights-path ... --img-path photos/ more.png --box-thresh 0.7 --save-json

Drawn pictures, and predictions.json, go to --output-dir.
"""

import json
import time
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from dataset_files.atomic_files import write_atomically
from dataset_files.coco_index import open_index
from dataset_files.image_reading import PICTURE_FORMATS, as_rgb, picture_to_tensor
from network_files import MaskRCNN
from network_files.mask_paste import encode_masks, mask_crops
from train_utils.classes import ClassTable
from train_utils.device import Precision
from train_utils.engine import ready_for_inference
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.metrics.coco_evaluation import coco_results
from train_utils.open_data import open_held_out
from train_utils.options import DataSettings, PredictSettings
from train_utils.test_time_augmentation import TestTimeAugmentation
from train_utils.trained_model import open_trained_model
from train_utils.visual.drawing import draw_instances

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def main(settings: PredictSettings) -> None:
    # Weights
    trained = open_trained_model(settings)
    classes, device, precision = trained.classes, trained.device, trained.precision
    model = TestTimeAugmentation(trained.model) if settings.tta else trained.model
    model = ready_for_inference(model, precision)

    # Pictures
    pictures = find_pictures(settings.img_path or [example_picture(trained.path, trained.trained_with)])
    output_paths = drawn_names(pictures, Path(settings.output_dir))
    image_ids = ids_of_pictures(pictures, settings.annotation_file)
    exif = settings.exif or trained.trained_with.get("exif") or "apply"
    with reading_input():
        Path(settings.output_dir).mkdir(parents=True, exist_ok=True)

    # Predictions
    detections, files, skipped = {}, {}, []
    for picture, output_path, image_id in zip(pictures, output_paths, image_ids):
        try:
            image = load_picture(picture, exif)
        except ValueError as error:
            skipped.append(picture)
            print(f"skipped: {error}", flush=True)
            continue
        started = time.perf_counter()
        found = detect(model, picture_to_tensor(image), device, precision, settings.box_thresh)
        seconds = time.perf_counter() - started
        draw(image, found, classes, settings.mask_thresh, model.continuous_paste).save(output_path)
        names = [classes.names.get(label, f"class {label}") for label in found["labels"].tolist()]
        print(f"{picture}: {len(names)} found in {seconds:.3f} s ({count(names)}), drawn in {output_path}", flush=True)
        if settings.save_json:
            size = (image.height, image.width)
            codes = encode_masks(found["masks"], found["boxes"], size, settings.mask_thresh, model.continuous_paste)
            detections[image_id] = {k: found[k].numpy() for k in ("boxes", "labels", "scores")} | {"codes": codes}
            files[image_id] = picture.name
    if settings.save_json:
        path = Path(settings.output_dir) / "predictions.json"
        write_atomically(path, json.dumps(in_coco_format(detections, files, classes)))
        print(f"detections of {len(files)} pictures in {path}")
    if skipped:
        raise InputError(f"{len(skipped)} of {len(pictures)} pictures could not be read, the first: {skipped[0]}")


def find_pictures(paths: list[str | Path]) -> list[Path]:
    """Files as they are given, folders as the pictures directly in them, by name."""
    pictures = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
            if not inside:
                raise InputError(f"{path}: no picture in this folder ({' '.join(sorted(SUFFIXES))})")
            pictures += inside
        elif path.is_file():
            pictures.append(path)
        else:
            raise InputError(f"{path}: no such file or folder (--img-path)")
    return pictures


def example_picture(weights: str | Path, trained_with: dict) -> Path:
    """A picture of the validation set that belongs to the weights: the first with at least three objects."""
    if not trained_with.get("data_path") and not trained_with.get("train_json"):
        raise InputError(f"{weights}: does not say which data it was trained on; give --img-path")
    with reading_input():
        dataset = open_held_out(DataSettings(), trained_with)
    best = max(range(min(len(dataset), 20)), key=lambda i: min(len(dataset.target(i)["labels"]), 4))
    return dataset.image_path(best)


def drawn_names(pictures: list[Path], folder: Path) -> list[Path]:
    """Where each drawn picture goes; pictures of the same name from different folders get a number."""
    names, taken = [], set()
    for picture in pictures:
        name, number = f"{picture.stem}.png", 2
        while name in taken:
            name, number = f"{picture.stem}_{number}.png", number + 1
        taken.add(name)
        names.append(folder / name)
    return names


def ids_of_pictures(pictures: list[Path], annotation_file: str | None = None) -> list[int]:
    """The ids of images in written results.

    Without a file: COCO's image ids where every file name is a number of its own, as COCO's are; else 1, 2, 3, ...

    Args:
        annotation_file: a COCO file in which the ids are looked up by file name, and where that is not unique or not
            there by base name.
    """
    if annotation_file is not None:
        with reading_input():
            index = open_index(Path(annotation_file))
        by_name: dict[str, set[int]] = {}
        for name, image_id in zip(index.file_names.tolist(), index.image_ids.tolist()):
            by_name.setdefault(name.replace("\\", "/").rpartition("/")[2], set()).add(image_id)
        found = [by_name.get(picture.name, set()) for picture in pictures]
        for picture, ids in zip(pictures, found):
            if len(ids) != 1:
                reason = "is not in" if not ids else "is the name of several images in"
                raise InputError(f"{picture}: {picture.name} {reason} {annotation_file} (--annotation-file)")
        return [ids.pop() for ids in found]
    if all(p.stem.isdigit() for p in pictures) and len({int(p.stem) for p in pictures}) == len(pictures):
        return [int(p.stem) for p in pictures]
    return list(range(1, len(pictures) + 1))


def load_picture(path: Path, exif: str = "apply") -> Image.Image:
    """An image file in RGB, with `exif` "apply" upright by its EXIF tag. ValueError names what cannot be read."""
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            return as_rgb(ImageOps.exif_transpose(picture) if exif == "apply" else picture)
    except Exception as error:  # a broken file makes Pillow raise anything
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


@torch.inference_mode()
def detect(
    model: MaskRCNN, image: Tensor, device: torch.device, precision: Precision, box_thresh: float
) -> dict[str, Tensor]:
    """The detections of one image uint8 [3, H, W] that score at least `box_thresh`, on the CPU."""
    with precision.autocast():
        (detection,) = model.detect([image.to(device)])
    keep = detection["scores"] >= box_thresh
    return {name: value[keep].cpu() for name, value in detection.items()}


def draw(
    image: Image.Image, found: dict[str, Tensor], classes: ClassTable, mask_thresh: float, continuous_paste: bool
) -> Image.Image:
    names = [classes.names.get(label, f"class {label}") for label in found["labels"].tolist()]
    crops = mask_crops(found["masks"], found["boxes"], (image.height, image.width), continuous_paste)
    masks = [(left, top, (crop > mask_thresh).numpy()) for left, top, crop in crops]
    return draw_instances(image, found["boxes"].numpy(), names, found["scores"].numpy(), masks)


def in_coco_format(detections: dict[int, dict], files: dict[int, str], classes: ClassTable) -> list[dict]:
    """COCO's results format, box and mask of a detection in one entry, and the name of the image's file."""
    results = coco_results(detections, classes.category_ids)
    return [
        {**box, "segmentation": mask["segmentation"], "file_name": files[box["image_id"]]}
        for box, mask in zip(results["bbox"], results["segm"])
    ]


def count(names: list[str]) -> str:
    """'2 person, 1 dog', or 'nothing'."""
    return ", ".join(f"{names.count(n)} {n}" for n in dict.fromkeys(names)) or "nothing"


if __name__ == "__main__":
    with one_line_errors():
        main(PredictSettings.parse(__doc__))
