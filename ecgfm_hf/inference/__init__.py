"""
Models over many recordings: scores, embeddings.

Nothing is imported until it is asked for.
"""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".embedding_map": ("draw_embedding_map", "principal_components"),
        ".embeddings": ("embed", "load_encoder"),
        ".parquet_run": ("ParquetRun", "ResumeError", "RunResult", "plan_of"),
        ".predictions": ("predict_recordings",),
        ".recordings": ("ModelRunner", "RecordingOutput", "run_recordings"),
        ".sources": ("FileSource", "StoreSource", "find_recordings"),
    },
)
