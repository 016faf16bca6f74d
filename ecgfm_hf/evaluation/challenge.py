"""
The score of the PhysioNet/Computing in Cardiology Challenge 2021, from its definition (Reyna et al., "Will Two Do?
Varying Dimensions in Electrocardiography", CinC 2021).
"""

import csv
import functools
from collections.abc import Sequence
from importlib import resources

import numpy as np

from ..fairseq.label_sets import PHYSIONET_CLASSES
from .metrics import MetricInputError

SINUS_RHYTHM = "426783006"
_WEIGHTS_FILE = "cinc2021_weights.csv"


@functools.cache
def _weights_table() -> tuple[tuple[str, ...], np.ndarray]:
    header, *rows = csv.reader(resources.files(__package__).joinpath(_WEIGHTS_FILE).read_text("utf-8").splitlines())
    weights = np.array([row[1:] for row in rows], dtype=np.float64)
    weights.setflags(write=False)
    return tuple(header[1:]), weights


def challenge_classes() -> tuple[str, ...]:
    """
    Return the 26 scored classes in the order of the challenge's `weights.csv`.

    They are SNOMED CT codes, with `|` between two that count as one class (such as `733534002|164909002`, complete and
    any left bundle branch block).
    """
    return _weights_table()[0]


def challenge_weights() -> np.ndarray:
    """Return (26, 26) float64: the credit for the class of a column if the recording has the class of the row."""
    return _weights_table()[1]


def challenge_columns(label_names: Sequence[str]) -> np.ndarray | None:
    """
    Return the indices of the 26 classes among these labels, (26,) int64, in the official order; None unless all are
    there.

    A class is found by its name as in the label set `physionet26` ("atrial fibrillation"), its abbreviation ("AF",
    "CLBBB|LBBB") or its codes ("164889003", "733534002|164909002").
    """
    indices = {name: index for index, name in enumerate(label_names)}
    columns = []
    for codes, abbreviation, name in PHYSIONET_CLASSES:
        aliases = ("|".join(map(str, codes)), abbreviation, name)
        found = [indices[alias] for alias in aliases if alias in indices]
        if len(found) != 1:
            return None
        columns.append(found[0])
    return np.array(columns, dtype=np.int64)


def challenge_score(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """
    Return the challenge's score of decisions.

    A recording's credit is the sum of the weights over the pairs of a class that it has and a class that it was given,
    divided by the number of classes that it has or was given. The sum over the recordings is scaled so that 0 is the
    credit of sinus rhythm for every recording, and 1 the credit of the right answers.

    Args:
        y_true (`np.ndarray` (recordings, 26)): The classes that each recording has, True or False (1 or 0), in the
            order of [`challenge_classes`]. Merge codes of one class first: it is present if any of them is.
        y_pred (`np.ndarray` (recordings, 26)): The classes that it was given.

    Returns:
        1 for the right answers, 0 for only sinus rhythm, less than 0 for worse; 0 also where the two have the same
        credit, as in the challenge (no recording, none with a scored class, only sinus rhythm). A recording without a
        scored class adds nothing.

    Raises:
        `MetricInputError`: other shapes, values other than 0 and 1. Exclude recordings with an unknown class first: the
            weights need all classes.
    """
    return float(scaled_credit(credits(y_true, y_pred).sum(axis=0)))


def credits(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Return (n, 3): each recording's credit of the decisions, of the right answer, and of sinus rhythm only."""
    classes = challenge_classes()
    true, given = (_boolean(values, what, len(classes)) for values, what in ((y_true, "y_true"), (y_pred, "y_pred")))
    if len(true) != len(given):
        raise MetricInputError(f"y_true has {len(true)} recordings, y_pred {len(given)}")
    weights = challenge_weights()
    sinus = np.zeros_like(true)
    sinus[:, classes.index(SINUS_RHYTHM)] = True
    answers = []
    for answer in (given, true, sinus):
        pairs = np.einsum("nk,nk->n", true @ weights, answer.astype(np.float64))
        answers.append(pairs / np.maximum((true | answer).sum(axis=1), 1))
    return np.stack(answers, axis=1)


def scaled_credit(total: np.ndarray) -> np.ndarray:
    """Return the score of summed [`credits`] (3, ...)."""
    observed, correct, inactive = total
    scale = correct - inactive
    # A right answer earns as much as sinus rhythm, or at least 0.5 more; less is rounding.
    return np.divide(observed - inactive, scale, out=np.zeros(np.shape(scale)), where=np.abs(scale) > 1e-9)


def _boolean(values: np.ndarray, what: str, width: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] != width:
        raise MetricInputError(
            f"{what} must have shape (recordings, {width}), a column for each scored class in the official order "
            f"(challenge_classes), found: {values.shape}"
        )
    if values.dtype != bool and ((values != 0) & (values != 1)).any():
        raise MetricInputError(
            f"{what} must be True or False (1 or 0); compare scores with thresholds first (at_thresholds)"
        )
    return values.astype(bool)
