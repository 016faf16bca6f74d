"""
To the Hub: what of a model goes, what must not, the push itself, and model cards.

Nothing is imported until it is asked for.
"""

import importlib
from typing import Any

_HOMES = {
    ".contents": ("GoingFile", "PushContents", "folder_contents"),
    ".errors": ("PushError", "PushRefusedError"),
    ".pushing": ("push_contents", "push_folder"),
    ".traces": ("Machine", "Trace", "find_traces", "this_machine"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name], __name__), name)
