"""Errors of predicted numbers."""

import numpy as np

from .metric_input import ratio, target_arrays


def mean_absolute_error(targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """
    Mean absolute error of each target.

    Args:
        targets (`np.ndarray` (n, L) or (n,)): NaN where unknown; those recordings are left out of that target.
        predicted (`np.ndarray` of the same shape)

    Returns:
        (L,) float64, in the target's unit; NaN where nothing is known.

    Raises:
        `MetricInputError`: shapes that differ, values that are not finite.
    """
    return mean_absolute_error_of(_sums(targets, predicted))


def r_squared(targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """
    Coefficient of determination of each target, as scikit-learn's `r2_score`: 1 less the squared error as a share of
    the squared deviation from the mean. NaN where fewer than two values are known or all are equal. Arguments, returns
    and errors as [`mean_absolute_error`].
    """
    return r_squared_of(_sums(targets, predicted))


def error_moments(targets: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """What each recording adds to these metrics, (n, L) each; 0 where the target is unknown."""
    targets, predicted = target_arrays(targets, predicted)
    known = ~np.isnan(targets)
    errors = np.where(known, targets - predicted, 0.0)
    # About the mean of the known: sums of squares then keep their digits, whatever the unit's zero.
    center = ratio(np.where(known, targets, 0.0).sum(axis=0), known.sum(axis=0))
    deviations = np.where(known, targets - center, 0.0)
    return {
        "known": known.astype(np.float64),
        "error": errors,
        "absolute": np.abs(errors),
        "squared": errors**2,
        "deviation": deviations,
        "squared_deviation": deviations**2,
    }


def mean_absolute_error_of(sums: dict[str, np.ndarray]) -> np.ndarray:
    """Mean absolute error of summed [`error_moments`], of any one shape."""
    return ratio(sums["absolute"], sums["known"])


def r_squared_of(sums: dict[str, np.ndarray]) -> np.ndarray:
    """R2 of summed [`error_moments`], of any one shape."""
    spread = sums["squared_deviation"] - ratio(sums["deviation"] ** 2, sums["known"])
    # Rounding leaves a constant target a spread that is not quite 0.
    constant = ~(spread > 1e-12 * sums["squared_deviation"])
    return np.where(constant, np.nan, 1.0 - ratio(sums["squared"], np.where(constant, 0.0, spread)))


def _sums(targets: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values.sum(axis=0) for name, values in error_moments(targets, predicted).items()}
