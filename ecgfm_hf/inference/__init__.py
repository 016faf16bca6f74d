"""
Models over many recordings: scores, embeddings.

Nothing is imported until it is asked for.
"""

import importlib
from typing import Any

_HOMES = {
    ".embedding_map": ("draw_embedding_map", "principal_components"),
    ".embeddings": ("embed", "load_encoder"),
    ".parquet_run": ("ParquetRun", "ResumeError", "RunResult", "plan_of"),
    ".predictions": ("predict_recordings",),
    ".recordings": ("ModelRunner", "RecordingOutput", "run_recordings"),
    ".sources": ("FileSource", "StoreSource", "find_recordings"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
