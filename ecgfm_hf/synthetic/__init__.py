"""
A synthetic cohort: labelled 12-lead recordings whose truth is known, for demonstrations, tests and benchmarks.

Nothing in it comes from a person, and nothing measured on it says anything about patients. `settings.py` has the
labels, their thresholds and the frozen defaults of the population. Nothing is imported until it is asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cohort import SyntheticCohort
    from .recording import SyntheticRecording, SyntheticTruth
    from .settings import COHORT_VERSION, EPISODIC_LABELS, LABEL_NAMES, LABELS, CohortSettings
    from .writing import WrittenCohort, write_record

_HOMES = {
    "SyntheticCohort": ".cohort",
    "SyntheticRecording": ".recording",
    "SyntheticTruth": ".recording",
    "COHORT_VERSION": ".settings",
    "EPISODIC_LABELS": ".settings",
    "LABELS": ".settings",
    "LABEL_NAMES": ".settings",
    "CohortSettings": ".settings",
    "WrittenCohort": ".writing",
    "write_record": ".writing",
}

__all__ = [
    "COHORT_VERSION",
    "EPISODIC_LABELS",
    "LABELS",
    "LABEL_NAMES",
    "CohortSettings",
    "SyntheticCohort",
    "SyntheticRecording",
    "SyntheticTruth",
    "WrittenCohort",
    "write_record",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
