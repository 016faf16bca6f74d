"""Labelers that come with the package, by name. They are definitions as anyone can write them."""

from . import mimic17, mimic17_clinical
from .mimic17 import LABELS as MIMIC17_LABELS

PRESETS = {"mimic17": mimic17.definition, "mimic17-clinical": mimic17_clinical.definition}

__all__ = ["MIMIC17_LABELS", "PRESETS"]
