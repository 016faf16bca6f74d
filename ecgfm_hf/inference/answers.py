"""From what a model says of a recording to rows: of Parquet files, and as the pipeline answers."""

from typing import Any

import numpy as np
import pyarrow as pa

from ..pipeline_ecgfm import positive_labels, recording_scores
from .reading import ReadRecording

_IDS = (("recording_id", pa.string()), ("patient_id", pa.string()))


def answer_of(read: ReadRecording, logits: np.ndarray, config: Any) -> dict[str, Any]:
    """A recording's answer as the pipeline gives it."""
    scores = recording_scores(logits, config)
    return {
        "recording": read.recording_id,
        "scores": scores,
        "positive": positive_labels(scores, config),
        "segments": len(logits),
        "warnings": list(read.warnings),
    }


def predict_schema(config: Any) -> pa.Schema:
    """`recording_id`, `patient_id`, `score:NAME` by label, `positive`, `segments`, `warnings`."""
    scores = [(f"score:{name}", pa.float64()) for name in config.label_names]
    texts = pa.list_(pa.string())
    return pa.schema([*_IDS, *scores, ("positive", texts), ("segments", pa.int32()), ("warnings", texts)])


def predict_rows(read: ReadRecording, logits: np.ndarray, _: Any, config: Any) -> list[dict[str, Any]]:
    answer = answer_of(read, logits, config)
    scores = {f"score:{name}": score for name, score in answer["scores"].items()}
    told = {name: answer[name] for name in ("positive", "segments", "warnings")}
    return [{"recording_id": read.recording_id, "patient_id": read.patient_id, **scores, **told}]


def embedding_schema(hidden_size: int, per_segment: bool) -> pa.Schema:
    """`recording_id`, `patient_id`, `segment` (its number) or `segments` (how many), `embedding`."""
    which = "segment" if per_segment else "segments"
    return pa.schema([*_IDS, (which, pa.int32()), ("embedding", pa.list_(pa.float32(), hidden_size))])


def embedding_rows(read: ReadRecording, _: Any, embeddings: np.ndarray, per_segment: bool) -> list[dict[str, Any]]:
    ids = {"recording_id": read.recording_id, "patient_id": read.patient_id}
    if per_segment:
        return [ids | {"segment": number, "embedding": one} for number, one in enumerate(embeddings)]
    return [ids | {"segments": len(embeddings), "embedding": mean_embedding(embeddings)}]


def mean_embedding(embeddings: np.ndarray) -> np.ndarray:
    """A recording's embedding (hidden_size,) float32 from those of its segments (segments, hidden_size)."""
    return embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)


__all__ = ["answer_of", "embedding_rows", "embedding_schema", "mean_embedding", "predict_rows", "predict_schema"]
