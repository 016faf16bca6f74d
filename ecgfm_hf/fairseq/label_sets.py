"""Label sets of the published ECG-FM classifiers, and labels that a user gives by name, list or file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..labeler.presets import MIMIC17_LABELS
from ..utils.errors import InputNotFoundError, SettingsError
from ..utils.text import read_cells


@dataclass(frozen=True)
class LabelSet:
    """
    Names of a classifier's outputs in their order, with their aggregation and notes.

    Args:
        names: One for each output.
        aggregation: `"mean"` or `"max"` over a recording's segments, by name; mean for names that are missing.
        notes: Warnings for users of a label, by name.
        pos_weight: The weights of positives that the published classifier was trained with, in the order of `names`;
            empty where none are published.
        thresholds: Decision thresholds on a recording's score, by name; empty without.
    """

    names: tuple[str, ...]
    aggregation: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    pos_weight: tuple[float, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)


MIMIC17 = LabelSet(
    names=MIMIC17_LABELS,
    aggregation={
        "Poor data quality": "max",
        "Premature ventricular contraction": "max",
        "Ventricular tachycardia": "max",
        "Supraventricular tachycardia with aberrancy": "max",
        "Electronic pacemaker": "max",
    },
    # Counts: the published label definition of the MIMIC-IV-ECG training split.
    notes={
        "Accessory pathway conduction": (
            "In the training labels this follows from atrial fibrillation and atrial flutter (74,977 positives, where "
            "those two have 63,672 and 11,258). A high score is no evidence of an accessory pathway."
        ),
        "Ventricular tachycardia": (
            "570 positives in 630,178 training recordings, weighted by 1,105: a score of 0.5 is far from a probability "
            "of 0.5."
        ),
    },
    pos_weight=(
        *(36.796317, 0.231449, 14.49034, 3.780268, 1104.575439, 23.01044, 8.897255, 54.976017, 6.66556),
        *(7.404951, 11.790818, 12.727873, 32.175994, 11.188187, 26.172215, 3.464408, 24.640965),
    ),
)

# The 26 classes that the PhysioNet/CinC Challenge 2021 scores, in the order of its weights.csv: SNOMED CT codes (two
# if its scoring merges them), abbreviations, name.
PHYSIONET_CLASSES: tuple[tuple[tuple[int, ...], str, str], ...] = (
    ((164889003,), "AF", "atrial fibrillation"),
    ((164890007,), "AFL", "atrial flutter"),
    ((6374002,), "BBB", "bundle branch block"),
    ((426627000,), "Brady", "bradycardia"),
    ((733534002, 164909002), "CLBBB|LBBB", "left bundle branch block"),
    ((713427006, 59118001), "CRBBB|RBBB", "right bundle branch block"),
    ((270492004,), "IAVB", "1st degree av block"),
    ((713426002,), "IRBBB", "incomplete right bundle branch block"),
    ((39732003,), "LAD", "left axis deviation"),
    ((445118002,), "LAnFB", "left anterior fascicular block"),
    ((164947007,), "LPR", "prolonged pr interval"),
    ((251146004,), "LQRSV", "low qrs voltages"),
    ((111975006,), "LQT", "prolonged qt interval"),
    ((698252002,), "NSIVCB", "nonspecific intraventricular conduction disorder"),
    ((426783006,), "NSR", "sinus rhythm"),
    ((284470004, 63593006), "PAC|SVPB", "premature atrial contraction"),
    ((10370003,), "PR", "pacing rhythm"),
    ((365413008,), "PRWP", "poor R wave progression"),
    ((427172004, 17338001), "PVC|VPB", "premature ventricular contractions"),
    ((164917005,), "QAb", "qwave abnormal"),
    ((47665007,), "RAD", "right axis deviation"),
    ((427393009,), "SA", "sinus arrhythmia"),
    ((426177001,), "SB", "sinus bradycardia"),
    ((427084000,), "STach", "sinus tachycardia"),
    ((164934002,), "TAb", "t wave abnormal"),
    ((59931005,), "TInv", "t wave inversion"),
)
_MERGED_NOTES = {
    "left bundle branch block": (
        "complete left bundle branch block (733534002) and left bundle branch block (164909002)"
    ),
    "right bundle branch block": (
        "complete right bundle branch block (713427006) and right bundle branch block (59118001)"
    ),
    "premature atrial contraction": (
        "premature atrial contraction (284470004) and supraventricular premature beats (63593006)"
    ),
    "premature ventricular contractions": (
        "premature ventricular contractions (427172004) and ventricular premature beats (17338001)"
    ),
}
PHYSIONET26 = LabelSet(
    names=tuple(name for _, _, name in PHYSIONET_CLASSES),
    notes={name: f"One class in the challenge's scoring: {merged}." for name, merged in _MERGED_NOTES.items()},
    pos_weight=(
        *(15.390331, 9.366471, 178.694517, 307.623318, 58.330172, 16.724182, 23.509615, 45.128016, 10.223581),
        *(38.081772, 223.179153, 53.063629, 43.894325, 48.763557, 1.994518, 25.936595, 58.587013, 143.283019),
        *(44.729568, 40.310324, 68.729483, 23.999274, 3.564768, 8.647183, 6.384442, 20.731291),
    ),
)
LABEL_SETS = {"mimic17": MIMIC17, "physionet26": PHYSIONET26}
# The published checkpoints' repositories, and their label sets, by the file's name without its ending.
PUBLISHED = {
    "mimic_iv_ecg_physionet_pretrained": "wanglab/ecg-fm",
    "mimic_iv_ecg_finetuned": "wanglab/ecg-fm",
    "physionet_finetuned": "wanglab/ecg-fm-preprint",
}
PUBLISHED_LABELS = {"mimic_iv_ecg_finetuned": "mimic17", "physionet_finetuned": "physionet26"}


def resolve_labels(labels: str | Path | Sequence[str] | LabelSet, num_labels: int) -> LabelSet:
    """
    Return the label set that a user gives by name, list or file.

    Args:
        labels: `"mimic17"`, `"physionet26"`, a file (a CSV with a column `name` and optionally `threshold`, such as
            fairseq-signals' `label_def.csv`, or one name on each line), names separated by commas, or a sequence of
            names.
        num_labels: Outputs of the classifier.

    Returns:
        A label set with exactly `num_labels` names.

    Raises:
        `SettingsError`: another number of names, an empty or repeated name, a file without names.
        `InputNotFoundError`: `labels` looks like a file that does not exist.
    """
    if isinstance(labels, LabelSet):
        label_set, origin = labels, "the label set"
    elif isinstance(labels, str) and labels in LABEL_SETS:
        label_set, origin = LABEL_SETS[labels], labels
    elif isinstance(labels, Path) or (isinstance(labels, str) and _is_file(labels)):
        label_set, origin = read_labels(labels), str(labels)
    elif isinstance(labels, str):
        label_set, origin = LabelSet(tuple(name.strip() for name in labels.split(","))), "the list given"
    else:
        if not all(isinstance(name, str) for name in labels):
            raise SettingsError(f"labels is {list(labels)!r}, expected names")
        label_set, origin = LabelSet(tuple(name.strip() for name in labels)), "the list given"
    names = label_set.names
    if len(names) != num_labels:
        hint = f" (label sets by name: {', '.join(LABEL_SETS)})" if len(names) == 1 else ""
        fitting = "".join(f"; {name} has as many" for name, one in LABEL_SETS.items() if len(one.names) == num_labels)
        raise SettingsError(
            f"the classifier has {num_labels} outputs, but {origin} has {len(names)} labels{hint}{fitting}"
        )
    _check_names(names, origin)
    return label_set


def _check_names(names: tuple[str, ...], origin: str) -> None:
    if "" in names:
        raise SettingsError(f"label {names.index('')} of {origin} is empty")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SettingsError(f"{origin} names labels more than once: {', '.join(repeated)}")


def _is_file(text: str) -> bool:
    if text.lower().endswith((".csv", ".tsv", ".txt")):
        return True
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or otherwise impossible as a path
        return False


def read_labels(path: str | Path) -> LabelSet:
    """
    Read labels from a CSV with a column `name`, such as `label_def.csv`, or from one name on each line.

    A column `threshold` has decision thresholds, of 0 to 1 on a recording's score; a label may be without one.

    Raises:
        `SettingsError`: the file is not text, has no labels, an empty or repeated one, an impossible threshold, or
            several columns of which none is called `name`.
        `InputNotFoundError`: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputNotFoundError(f"{path}: no such file of labels")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not a text file in UTF-8: {error}") from error
    rows = [[cell.strip() for cell in row] for row in read_cells(text.splitlines()) if any(c.strip() for c in row)]
    if not rows:
        raise SettingsError(f"{path} has no labels")
    header = rows[0]
    if "name" not in header:
        if any(len(row) > 1 for row in rows):
            raise SettingsError(
                f"{path} has several columns, but none is called 'name' (found: {', '.join(header[:8])})"
            )
        return LabelSet(tuple(row[0] for row in rows))
    columns = {name: [row[i] if i < len(row) else "" for row in rows[1:]] for i, name in enumerate(header)}
    names = tuple(columns["name"])
    _check_names(names, str(path))
    thresholds = {}
    for name, cell in zip(names, columns.get("threshold", ()), strict=False):
        if not cell:
            continue
        try:
            thresholds[name] = float(cell)
        except ValueError:
            thresholds[name] = math.nan
        if not 0 <= thresholds[name] <= 1:
            raise SettingsError(f"{path}: the threshold of {name!r} is {cell!r}, expected a number from 0 to 1")
    return LabelSet(names, thresholds=thresholds)


__all__ = [
    "LABEL_SETS",
    "MIMIC17",
    "PHYSIONET26",
    "PHYSIONET_CLASSES",
    "PUBLISHED",
    "PUBLISHED_LABELS",
    "LabelSet",
    "read_labels",
    "resolve_labels",
]
