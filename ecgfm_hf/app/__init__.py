"""
A web page that scores one recording at a time: `ecgfm app`.

Nothing is imported until it is asked for; the page needs the extra `[app]` (gradio, captum, matplotlib).
"""

import importlib
from typing import Any

_HOMES = {
    ".command": ("add_app_arguments", "run_app"),
    ".server": ("AppSettings", "build_app", "private_folder", "serve"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
