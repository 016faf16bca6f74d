"""Thresholds of scores, fitted on a validation split: there is no default, and 0.5 is none."""

import numpy as np

from .metrics import MetricInputError, label_arrays, threshold_counts

HOW = ("youden", "f1", "sensitivity")


def fit_thresholds(
    labels: np.ndarray, scores: np.ndarray, how: str = "youden", target: float | None = None
) -> np.ndarray:
    """
    A threshold for each label, to be fitted on the validation split and never on the recordings that it is judged on.
    A recording is positive where its score reaches the threshold. Scores are as they will be used: calibrated, if the
    config calibrates.

    Args:
        labels (`np.ndarray` (n, L) or (n,)): 1, 0, or NaN where unknown; a label's unknown recordings are left out.
        scores (`np.ndarray` of the same shape)
        how (`str`): `"youden"` maximises sensitivity + specificity - 1, `"f1"` the F1 score; `"sensitivity"` takes the
            highest threshold that reaches the `target` sensitivity, so the best specificity.
        target (`float`, *optional*): For `"sensitivity"`, above 0 and at most 1.

    Returns:
        (L,) float64: between two neighbouring scores, halfway; of several that are equally good the one with fewest
        flagged. NaN where a label lacks positives or negatives, or has one score throughout: nothing can be fitted.

    Raises:
        `MetricInputError`: shapes that differ, an unknown `how`, a target that is missing, senseless or not asked for.
    """
    if how not in HOW:
        raise MetricInputError(f"how must be one of {', '.join(HOW)}, found: {how!r}")
    if (target is not None) != (how == "sensitivity") or (target is not None and not 0 < target <= 1):
        raise MetricInputError(
            f"how='sensitivity' needs a target above 0 and at most 1, the others take none; found how={how!r}, "
            f"target={target}"
        )
    labels, scores = label_arrays(labels, scores)
    pairs = zip(labels.T, scores.T, strict=True)
    return np.array([_fit(label, score, how, target) for label, score in pairs], dtype=np.float64)


def _fit(label: np.ndarray, score: np.ndarray, how: str, target: float | None) -> float:
    true_positive, false_positive, values = (column[1:] for column in threshold_counts(label, score))
    if len(values) < 2 or true_positive[-1] == 0 or false_positive[-1] == 0:
        return float("nan")
    positives, negatives = true_positive[-1], false_positive[-1]
    if how == "sensitivity":
        # A hair less than asked: 0.9 of 10 is 9, which binary fractions may miss.
        best = int(np.argmax(true_positive >= target * positives * (1 - 1e-12)))
    elif how == "f1":
        best = int(np.argmax(2 * true_positive / (true_positive + false_positive + positives)))
    else:
        best = int(np.argmax(true_positive / positives - false_positive / negatives))
    if best == len(values) - 1:  # everything is flagged; there is no lower neighbour
        return float(values[best])
    middle = (values[best] + values[best + 1]) / 2
    # Neighbouring floats have nothing between them.
    return float(middle if values[best + 1] < middle <= values[best] else values[best])


def at_thresholds(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    Decisions (n, L) float64: 1 where a score reaches its label's threshold, otherwise 0, NaN where the label has none.

    Args:
        scores (`np.ndarray` (n, L))
        thresholds (`np.ndarray` (L,)): NaN where there is none.

    Raises:
        `MetricInputError`: another number of thresholds than of labels.
    """
    scores, thresholds = np.asarray(scores, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    if scores.ndim != 2 or thresholds.shape != scores.shape[1:]:
        raise MetricInputError(
            f"scores must have shape (recordings, labels) and thresholds (labels,), found: {scores.shape} and "
            f"{thresholds.shape}"
        )
    return np.where(np.isnan(thresholds), np.nan, scores >= thresholds)
