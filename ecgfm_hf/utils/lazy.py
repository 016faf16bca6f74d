"""Packages whose names are imported when they are first asked for, so that nothing heavy loads before it is needed."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """
    What a package's `__init__` needs to import its public names on demand (PEP 562).

    Args:
        package: Its `__name__`.
        homes: Relative module names, and the public names that each has.

    Returns:
        `__getattr__`, `__dir__` and `__all__`.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home_of[name], package), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return get, names, sorted(home_of)


__all__ = ["lazy_names"]
