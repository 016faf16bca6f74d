"""
Labels from free-text ECG reports.

The engine alone: tables come from you ([`Labeler.from_definition`]) or from your own clone of the original
([`Labeler.from_original`]). This package has no tables of its own yet.
"""

from .batch import join_lines, label_reports
from .errors import LabelerError
from .explanation import Explanation, Reason
from .inference import Switches
from .knowledge import Compound, Descriptor, Entity, Knowledge, Mention, Pattern
from .label_def import LabelCounts
from .labeler import Labeler, ReportLabels
from .original_json import load_original_json

__all__ = [
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
    "join_lines",
    "label_reports",
    "load_original_json",
]
