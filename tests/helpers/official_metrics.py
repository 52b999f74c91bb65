"""COCO's own evaluation code, pycocotools' COCOeval, as the oracle of the metrics."""

import contextlib
import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def official_evaluation(truth: Path | dict, results: Sequence[dict], iou_type: str, most: int | None = None) -> Any:
    """Evaluate results against a COCO file or its content; with `most` detections per class there are no `stats`."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth) if isinstance(truth, Path) else None)
        if isinstance(truth, dict):
            coco.dataset = copy.deepcopy(truth)
            coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(list(results))), iou_type)
        if most is not None:
            evaluation.params.maxDets = [most]
        evaluation.evaluate()
        evaluation.accumulate()
        if most is None:
            evaluation.summarize()
    return evaluation
