"""Labelers that come with the package, by name. They are definitions as anyone can write them."""

from collections.abc import Callable
from typing import Any, Literal

from . import mimic17, mimic17_clinical
from .mimic17 import LABELS as MIMIC17_LABELS

Preset = Literal["mimic17", "mimic17-clinical"]
PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "mimic17": mimic17.definition,
    "mimic17-clinical": mimic17_clinical.definition,
}

__all__ = ["MIMIC17_LABELS", "PRESETS", "Preset"]
