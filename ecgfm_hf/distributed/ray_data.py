"""Classes for `map_batches` of a `ray.data.Dataset`: a model's scores and embeddings of rows with recordings."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..inference.embeddings import embedding_rows, embedding_schema, load_encoder
from ..inference.model_runner import ModelRunner, score_rows, score_schema
from ..inference.read_ahead import ReadRecording, read_in_order
from ..inference.recording_sources import PythonSource
from ..model_folder import load_pipeline
from ..modeling_ecgfm import ECGFMForMultiLabelClassification
from ..pipeline_ecgfm import RECORDING_KEYS
from ..records.store_rows import SIGNAL_COLUMNS
from ..utils.precision import keep_freed_memory, resolve_precision, weights_dtype

_FAILURE = ("failure", pa.string())


class _RowModel(ABC):
    """What both classes share: rows of a batch in, a table with a row for each of them out."""

    _runner: ModelRunner
    _extractor: ECGFMFeatureExtractor
    _schema: pa.Schema

    def __call__(self, batch: Mapping[str, np.ndarray] | pa.Table) -> pa.Table:
        """
        Run the model on a batch.

        Args:
            batch: As `map_batches` gives it, with `batch_format="numpy"` (the default) or `"pyarrow"`: the columns of a
                store, or `signal` (leads, samples), `sampling_rate` in Hz, `lead_names`, and optionally `units`.
                `recording_id` and `patient_id` are kept.

        Returns:
            A row for each row, in their order. Where a recording cannot be used, `failure` gives the reason and the
            other columns are null.
        """
        table = batch if isinstance(batch, pa.Table) else None
        names = table.column_names if table is not None else list(batch)
        columns = {name: table[name].to_pylist() if table is not None else list(batch[name]) for name in names}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        source = PythonSource([_as_input(row) for row in rows], self._extractor, {})
        found: list[dict[str, Any]] = []
        for row, (read, logits, embeddings) in zip(rows, self._runner.run(read_in_order(source)), strict=True):
            ids = {name: row.get(name) for name in ("recording_id", "patient_id")}
            result = {"failure": read.failure} if read.failure is not None else self._row(read, logits, embeddings)
            found.append(result | ids)
        schema = self._schema.append(pa.field(*_FAILURE))
        return pa.Table.from_pylist(found, schema=schema)

    @abstractmethod
    def _row(self, read: ReadRecording, logits: np.ndarray | None, embeddings: np.ndarray | None) -> dict[str, Any]:
        """Return the row of a recording that ran."""


class ECGFMPredictor(_RowModel):
    """
    Scores recordings in `map_batches`: `dataset.map_batches(ECGFMPredictor, fn_constructor_kwargs={"model": DIR})`.

    The columns are those of `ecgfm predict --output FILE.parquet`, and `failure`.

    Args:
        model: Folder or Hub repository of a classifier, which every node must see.
        batch_size: Segments that run together.
        precision, device: As in [`load_pipeline`]; with `num_gpus=1`, `device="cuda"`.
        policies: Of the feature extractor, in place of its own, such as `short_recordings="pad"`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        batch_size: int = 16,
        precision: str = "float32",
        device: str = "cpu",
        **policies: str,
    ):
        keep_freed_memory()
        precision = resolve_precision(precision, device)
        dtype = weights_dtype(precision, device)
        pipeline = load_pipeline(model, device=device, dtype=dtype, **policies)  # type: ignore[arg-type]  # policies only
        classifier, extractor = pipeline.model, pipeline.feature_extractor
        # The package's own classes, by load_pipeline.
        assert isinstance(classifier, ECGFMForMultiLabelClassification)
        assert isinstance(extractor, ECGFMFeatureExtractor)
        self._extractor, self._config = extractor, classifier.config
        self._runner = ModelRunner(classifier, batch_size, precision)
        self._schema = score_schema(self._config)

    def _row(self, read: ReadRecording, logits: np.ndarray | None, embeddings: np.ndarray | None) -> dict[str, Any]:
        assert logits is not None  # a classifier has logits
        return score_rows(read, logits, self._config)[0]


class ECGFMEmbedder(_RowModel):
    """
    Embeds recordings in `map_batches`; the columns are those of `ecgfm embed`, and `failure`.

    Args:
        model: Folder or Hub repository of any ECG-FM model, which every node must see.
        layer: As in [`embed`].
        batch_size, precision, device, policies: As of [`ECGFMPredictor`].
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        layer: int = -1,
        batch_size: int = 16,
        precision: str = "float32",
        device: str = "cpu",
        **policies: str,
    ):
        keep_freed_memory()
        precision = resolve_precision(precision, device)
        encoder, self._extractor = load_encoder(model, device=device, precision=precision, **policies)
        self._runner = ModelRunner(encoder, batch_size, precision, embeddings=True, layer=layer)
        self._schema = embedding_schema(encoder.config.hidden_size, per_segment=False)

    def _row(self, read: ReadRecording, logits: np.ndarray | None, embeddings: np.ndarray | None) -> dict[str, Any]:
        assert embeddings is not None  # they were requested
        return embedding_rows(read, embeddings, False, self._extractor)[0]


def _as_input(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as the pipeline takes it: without columns that it does not know, as numpy holds no lists."""
    if isinstance(row.get("signal"), bytes):  # a store's
        return {name: _as_list(row[name]) for name in (*SIGNAL_COLUMNS, "start_s") if name in row}
    known = {name: row[name] for name in RECORDING_KEYS if row.get(name) is not None}
    if "signal" in known:
        with contextlib.suppress(ValueError):  # leads of several lengths, which the extractor refuses by name
            known["signal"] = np.stack([np.asarray(lead) for lead in known["signal"]])
    return {"recording": row["recording_id"], **known} if row.get("recording_id") else known


def _as_list(value: Any) -> Any:
    """Return a cell as the store has it; numpy has arrays for lists and NaN for null."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and np.isnan(value) else value


__all__ = ["ECGFMEmbedder", "ECGFMPredictor"]
