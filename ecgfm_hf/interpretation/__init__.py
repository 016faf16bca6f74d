"""
What a score rests on, and how it looks on paper: saliency and clinical plots.

Nothing is imported until it is asked for; saliency needs the extra `[saliency]` (captum), plots `[plots]` (matplotlib).
"""

import importlib
from typing import Any

_HOMES = {
    ".attention": ("attention_saliency",),
    ".attribution": ("Attribution", "attribute"),
    ".command": ("add_plot_arguments", "pages", "plot_path", "plot_recording", "saliency_for_plot"),
    ".deletion": ("delete_times", "most_salient_times", "shifted_times"),
    ".ecg_page": ("plot_ecg",),
    ".paper": ("save_page",),
    ".prediction_page": ("plot_prediction",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
