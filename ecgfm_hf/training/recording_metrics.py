"""From the logits of segments to the figures of recordings that choose a checkpoint."""

from typing import Any

import numpy as np

from ..evaluation import auroc, macro, mean_absolute_error, r_squared
from ..pipeline_ecgfm import recording_scores

# The figure that early stopping watches and the best checkpoint has most of, by kind of problem.
SELECTION = {
    "multi_label_classification": "auroc_macro",
    "single_label_classification": "auroc_macro",
    "regression": "r_squared_macro",
}


def recording_table(
    rows: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    config: Any,
    scale: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Scores and targets of recordings.

    Args:
        rows (`np.ndarray` (segments,)): The recording of each segment; those of one follow one another.
        logits (`np.ndarray` (segments, L))
        labels (`np.ndarray`): Targets of segments, (segments, L), or (segments,) class numbers.
        config (`ECGFMConfig`): Says how segments are aggregated.
        scale (two `np.ndarray` (L,), *optional*): Mean and deviation to undo, of standardised targets.

    Returns:
        Rows (recordings,), scores and targets (recordings, L) float64; targets of classes one-hot, NaN where unknown.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if scale is not None:
        mean, deviation = scale
        logits, labels = logits * deviation + mean, labels.astype(np.float64) * deviation + mean
    first = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1]) if len(rows) else np.zeros(0, dtype=np.int64)
    scores = [list(recording_scores(segments, config).values()) for segments in np.split(logits, first[1:])]
    targets = labels[first]
    if targets.ndim == 1:
        classes = targets
        targets = (classes[:, None] == np.arange(config.num_labels)).astype(np.float64)
        targets[classes < 0] = np.nan
    return rows[first], np.array(scores).reshape(len(first), -1), targets.astype(np.float64)


def recording_metrics(scores: np.ndarray, targets: np.ndarray, problem_type: str | None) -> dict[str, float]:
    """
    `auroc_macro` and, by number, `auroc_undefined` (labels of one class, left out); for regression `r_squared_macro`
    and `mean_absolute_error_macro`.
    """
    if problem_type == "regression":
        squared, undefined = macro(r_squared(targets, scores))
        error, _ = macro(mean_absolute_error(targets, scores))
        return {
            "r_squared_macro": float(squared),
            "r_squared_undefined": int(undefined),
            "mean_absolute_error_macro": float(error),
        }
    mean, undefined = macro(auroc(targets, scores))
    return {"auroc_macro": float(mean), "auroc_undefined": int(undefined)}


__all__ = ["SELECTION", "recording_metrics", "recording_table"]
