"""Calibration and thresholds of a trained classifier, from its validation split."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .settings import FinetuneSettings, parse_threshold_rule


@dataclass(frozen=True)
class OperatingPoints:
    """
    Calibration and thresholds for a model's config.

    Args:
        calibration (`dict[str, dict[str, float]]`): Slope and intercept by label, of labels that have one.
        thresholds (`dict[str, float]`): By label, on the calibrated score if the label has a calibration.
        cases (`dict[str, tuple[int, int]]`): Positive and negative recordings that were available, by label.
        notes (`list[str]`): Sentences for the user, such as labels without a threshold.
    """

    calibration: dict[str, dict[str, float]] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    cases: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def fit_operating_points(
    label_names: Sequence[str],
    targets: np.ndarray,
    scores: np.ndarray,
    pos_weight: Sequence[float] | None,
    settings: FinetuneSettings,
) -> OperatingPoints:
    """
    Fit a calibration, then thresholds on the calibrated scores, both on the same recordings.

    A label with fewer than `min_cases` positives or negatives gets neither. The same is true of a label whose positives
    do not score higher than its negatives.

    Args:
        label_names (sequence of `str`)
        targets, scores (`np.ndarray` (recordings, L)): Of the validation split; scores are uncalibrated.
        pos_weight (sequence of `float`, *optional*): Of the loss; its shift of the logits is undone before calibrating.
        settings ([`FinetuneSettings`]): `thresholds`, `calibration`, `min_cases`.
    """
    from ..evaluation import apply_calibration, auroc, fit_calibration, fit_thresholds

    rule = parse_threshold_rule(settings.thresholds)
    if settings.calibration == "none" and rule is None:
        return OperatingPoints()
    positives, negatives = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    # Where positives do not score higher, neither a calibration nor a threshold helps.
    chance = ~(auroc(targets, scores) > 0.5)
    enough = (np.minimum(positives, negatives) >= settings.min_cases) & ~chance
    cases = {n: (int(p), int(q)) for n, p, q in zip(label_names, positives, negatives, strict=True)}
    names = [name for name, known in zip(label_names, enough, strict=True) if known]
    targets, scores = targets[:, enough], scores[:, enough]
    fits: list[dict[str, float] | None] = [None] * len(names)
    if settings.calibration != "none" and names:
        weights = None if pos_weight is None else np.asarray(pos_weight)[enough]
        fits = fit_calibration(targets, scores, weights, how=settings.calibration, label_names=names)
    found = np.full(len(names), np.nan)
    if rule is not None and names:
        found = fit_thresholds(targets, apply_calibration(scores, fits), how=rule[0], target=rule[1])
    calibration = {name: dict(fit) for name, fit in zip(names, fits, strict=True) if fit is not None}
    thresholds = {name: float(value) for name, value in zip(names, found, strict=True) if np.isfinite(value)}
    useless = [name for name, found in zip(label_names, chance, strict=True) if found]
    return OperatingPoints(calibration, thresholds, cases, _notes(cases, useless, calibration, thresholds, settings))


def _notes(
    cases: dict[str, tuple[int, int]],
    useless: list[str],
    calibration: dict[str, Any],
    thresholds: dict[str, float],
    settings: FinetuneSettings,
) -> list[str]:
    notes = []
    few = [name for name in cases if min(cases[name]) < settings.min_cases]
    if few:
        listed = ", ".join(f"{name} ({cases[name][0]} positive, {cases[name][1]} negative)" for name in few)
        notes.append(
            f"no calibration and no threshold, as validation has fewer than min_cases={settings.min_cases} positives "
            f"or negatives: {listed}"
        )
    useless = [name for name in useless if name not in few]
    if useless:
        notes.append(
            "no calibration and no threshold, as positives do not score higher than negatives on the validation split: "
            f"{', '.join(useless)}"
        )
    for what, asked, got in (
        ("calibration", settings.calibration != "none", calibration),
        ("threshold", settings.thresholds != "none", thresholds),
    ):
        failed = [name for name in cases if asked and name not in {*few, *useless, *got}]
        if failed:
            notes.append(f"no {what} could be fitted for {', '.join(failed)}")
    return notes


__all__ = ["OperatingPoints", "fit_operating_points"]
