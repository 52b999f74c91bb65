"""Detect objects with one runtime in a process of its own; `onnx_parity.py` starts one process per way.

    python benchmarks/detect_worker.py onnxruntime fp32 model.onnx 1

Reads lines of an image id and a path to a .npy file, uint8 [H, W, 3], and prints a JSON line per image: seconds of
processor time, and detections in COCO's results format. At the end of the input it prints its peak memory in bytes.
Only the runtime "torch" imports torch.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

Detection = dict[str, np.ndarray]


def main(runtime: str, precision: str, path: str, threads: int) -> None:
    name, category_ids, detect, encode = (open_torch if runtime == "torch" else open_exported)(
        runtime, precision, path, threads
    )
    print(json.dumps(name), flush=True)
    for line in sys.stdin:
        image_id, file = line.split(maxsplit=1)
        image = np.load(file.rstrip("\n"))
        start = time.process_time()
        found = detect(image)
        seconds = time.process_time() - start
        codes = encode(found["masks"], found["boxes"], image.shape[:2])
        boxes = np.concatenate((found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]), axis=1)
        results = [
            {
                "image_id": int(image_id), "category_id": category_ids[label], "score": score, "bbox": box,
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            }
            for label, score, box, code in zip(
                found["labels"].tolist(), found["scores"].tolist(), boxes.tolist(), codes
            )
            if label in category_ids
        ]  # fmt: skip
        print(json.dumps({"seconds": seconds, "results": results}), flush=True)
    print(json.dumps(peak_memory()), flush=True)


def open_torch(runtime: str, precision: str, path: str, threads: int) -> tuple[str, dict[int, int], Callable, Callable]:
    """Open a weight file as predict.py does: its name for the table, label -> category id, detector and encoder."""
    import torch

    from prediction.predictor import Predictor

    torch.set_num_threads(threads)
    predictor = Predictor(path, device="cpu", amp=precision == "bf16")

    def detect(image: np.ndarray) -> Detection:
        return predictor.detect([np.ascontiguousarray(image.transpose(2, 0, 1))])[0]

    return f"torch {torch.__version__}, {precision}", predictor.classes.category_ids, detect, predictor.encode


def open_exported(
    runtime: str, precision: str, path: str, threads: int
) -> tuple[str, dict[int, int], Callable, Callable]:
    """Open an exported file; returns the same as `open_torch`."""
    from network_files.masks.encode import encode_masks
    from onnx_files.onnx_model import OnnxModel

    model = OnnxModel(path, threads, runtime, precision)
    about = model.description

    def encode(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[dict]:
        return encode_masks(masks, boxes, size, continuous=about.continuous_paste)

    def detect(image: np.ndarray) -> Detection:
        return model.detect(image.transpose(2, 0, 1))

    return model.session.name, about.category_ids, detect, encode


def peak_memory() -> int:
    """The largest resident memory of this process so far; unlike `ru_maxrss`, without that of the parent process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
