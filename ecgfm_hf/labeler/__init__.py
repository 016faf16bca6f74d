"""
Labels from free-text ECG reports.

[`Labeler.from_preset`] has tables of this package: `mimic17` gives the 17 labels of the published classifier for
MIMIC-IV-ECG, `mimic17-clinical` reads reports as a clinician would. Tables may also be your own
([`Labeler.from_definition`]) or those of your clone of the original ([`Labeler.from_original`]).
"""

from .batch import join_lines, label_reports
from .errors import LabelerError
from .explanation import Explanation, Reason, html_page
from .inference import Switches
from .knowledge import Compound, Descriptor, Entity, Knowledge, Mention, Pattern
from .label_def import LabelCounts
from .labeler import Labeler, ReportLabels
from .original_json import load_original_json
from .presets import MIMIC17_LABELS, PRESETS

__all__ = [
    "MIMIC17_LABELS",
    "PRESETS",
    "Compound",
    "Descriptor",
    "Entity",
    "Explanation",
    "Knowledge",
    "LabelCounts",
    "Labeler",
    "LabelerError",
    "Mention",
    "Pattern",
    "Reason",
    "ReportLabels",
    "Switches",
    "html_page",
    "join_lines",
    "label_reports",
    "load_original_json",
]
