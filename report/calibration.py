"""Compare scores with the share of detections that are right: a calibrated score of 0.8 is right in 8 of 10 cases."""

from dataclasses import dataclass

import numpy as np

from report.average_precision import AT_50
from report.eval_data import EvalData
from report.matching import Matching

BINS = 10  # of equal width


@dataclass
class Calibration:
    """Scores and shares of right detections at IoU 0.5, by range of scores.

    Attributes:
        counts: int64 [B], detections in each range.
        scores, right: float64 [B], their mean score and the share that is right; NaN without detections.
        error: expected calibration error: mean difference of the two over all detections; NaN without any.
    """

    counts: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    error: float


def calibration(data: EvalData, matching: Matching) -> Calibration:
    """Compute the calibration of all detections but those inside crowds; equals hotcoco's `calibration`."""
    counted = ~matching.ignored[AT_50]
    scores, right = data.detections.scores[counted], matching.objects[AT_50, counted] >= 0
    bins = np.clip(scores * BINS, 0, BINS - 1).astype(int)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means, shares = (np.bincount(bins, values, minlength=BINS) / counts for values in (scores, right))
    error = np.nansum(counts * np.abs(means - shares)) / counts.sum() if len(scores) else float("nan")
    return Calibration(counts, means, shares, float(error))
