"""What is compared: fine-tuning and training from scratch, heads on embeddings, heads on hand-made features."""

import json
import os
import shutil
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMModel
from ecgfm_hf.data import load_prepared
from ecgfm_hf.evaluation import auroc, macro
from ecgfm_hf.training import (
    Embeddings,
    FinetuneData,
    Finetuner,
    FinetuneSettings,
    build_classifier,
    embed_split,
    fit_heads,
    fit_linear_probe,
)
from ecgfm_hf.training.finetuning_data import LabelledSegments
from ecgfm_hf.training.trainable_weights import ADAPTERS_FOLDER

from .cohort import SegmentsOfRows, Split, StudyFolder, draw_rows
from .settings import FEATURES, LORA, PROBE, SCRATCH, Cell, Study


@cache
def load_split(folder: StudyFolder, name: str) -> Split:
    """A split, read once a process."""
    return Split(folder, name)


def rows_of_draw(study: Study, folder: StudyFolder, split: str, labels: int, draw: int) -> np.ndarray:
    """The recordings of a draw."""
    draws = study.draws[labels] if split == "labelled" else 1
    return _draws(folder, split, labels, draws, study.seed, study.least_patients)[draw]


@cache
def _draws(folder: StudyFolder, split: str, labels: int, draws: int, seed: int, least: int) -> list[np.ndarray]:
    return draw_rows(load_split(folder, split), labels, draws, seed, least)


def run_cell(study: Study, folder: StudyFolder, cell: Cell) -> dict:
    """
    Trains and judges; or reads what was found before.

    Returns:
        What `CELL.json` holds: the cell, `auroc` by label, `macro_auroc`, `seconds`. Scores
        (recordings, labels) of the judging split are in `CELL.npy`.
    """
    path = folder.cells / f"{cell.name}.json"
    known = read_result(folder, cell)
    if known is not None:
        return known
    started = time.perf_counter()
    run_dir = folder.path / "runs" / cell.name
    shutil.rmtree(run_dir, ignore_errors=True)
    settings = replace(cell_settings(study, folder, cell), output_dir=str(run_dir))
    train, judge = load_split(folder, cell.split), load_split(folder, cell.judge)
    rows = rows_of_draw(study, folder, cell.split, cell.labels, cell.draw)
    segments = LabelledSegments(SegmentsOfRows(train, rows), train.labels[rows])
    data = FinetuneData(train.label_names, settings.problem_type, segments, None)
    data.datasets = {"train": load_prepared(folder.store, cell.split).select(rows)}
    data.rows = {"train": np.arange(len(rows))}
    result = Finetuner(settings, data=data).run()
    if not result.finished:
        raise KeyboardInterrupt
    scores = score(result.model, judge)
    values = auroc(judge.labels, scores)
    found = {
        "cell": asdict(cell),
        "macro_auroc": macro(values)[0],
        "auroc": dict(zip(train.label_names, values.tolist(), strict=True)),
        "trained_weights": result.trainable_parameters,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if cell.arm == LORA:
        found["weights"] = result.parameters
        found["logits_differ_by"] = adapters_differ_by(settings, train, run_dir, result.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.cells / f"{cell.name}.{os.getpid()}.partial"
    np.save(scratch.with_suffix(".partial.npy"), scores)
    os.replace(scratch.with_suffix(".partial.npy"), path.with_suffix(".npy"))
    scratch.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)  # last: its presence means that the scores are complete
    shutil.rmtree(run_dir, ignore_errors=True)
    return found


def adapters_differ_by(settings: FinetuneSettings, split: Split, run_dir: Path, merged: torch.nn.Module) -> list[float]:
    """
    How far the logits of the merged model, and of the same saved and loaded again, are at most from the logits of the
    adapters that were saved, on the model that training began from (float32, 32 segments).
    """
    from peft import PeftModel

    from ecgfm_hf import ECGFMForMultiLabelClassification

    segments = torch.from_numpy(np.array(split.segments[:32]))
    base = build_classifier(settings, split.label_names)
    merged.save_pretrained(run_dir / "merged")
    loaded = ECGFMForMultiLabelClassification.from_pretrained(run_dir / "merged")
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, str(run_dir / ADAPTERS_FOLDER)).eval()(segments).logits
        return [float((model.eval()(segments).logits - adapted).abs().max()) for model in (merged, loaded)]


def read_result(folder: StudyFolder, cell: Cell) -> dict | None:
    """What [`run_cell`] found, None where it has not run."""
    path = folder.cells / f"{cell.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_scores(folder: StudyFolder, cell: Cell) -> np.ndarray:
    """Scores (recordings, labels) of a cell that has run."""
    return np.load(folder.cells / f"{cell.name}.npy")


def cell_settings(study: Study, folder: StudyFolder, cell: Cell) -> FinetuneSettings:
    """
    Fine-tuning of all weights, or of adapters; scratch is the same from the weights that pretraining began with, drawn
    anew.
    """
    base = folder.random if cell.arm == SCRATCH else folder.pretrained
    architecture = json.loads((base / "config.json").read_text(encoding="utf-8"))
    shape = {name: architecture[name] for name in _ARCHITECTURE}
    return FinetuneSettings(
        init_from=None if cell.arm == SCRATCH else str(base),
        lora=json.loads(cell.adapters) if cell.arm == LORA else {},
        pos_weight=None,
        model={**shape, **study.model},
        per_device_train_batch_size=study.batch_size,
        gradient_accumulation_steps=1,
        max_steps=cell.steps,
        valid_split=None,
        # At the end only.
        save_strategy="steps",
        save_steps=cell.steps,
        logging_steps=cell.steps,
        optim="adamw_torch_fused",
        learning_rate=cell.learning_rate,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        thresholds="none",
        calibration="none",
        seed=study.seed + 1000 * cell.draw + 1,
        bf16=True,
        use_cpu=True,
    )


_ARCHITECTURE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim")
_ARCHITECTURE += ("conv_kernel", "conv_stride", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups")


def score(model: torch.nn.Module, split: Split, batch_size: int = 64) -> np.ndarray:
    """Scores (recordings, labels) as the pipeline gives them."""
    from ecgfm_hf.pipeline_ecgfm import recording_scores

    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = [
            model(torch.from_numpy(np.array(split.segments[start : start + batch_size]))).logits.float().numpy()
            for start in range(0, len(split.segments), batch_size)
        ]
    by_recording = np.concatenate(logits).reshape(len(split.recording_ids), split.per_recording, -1)
    return np.array([list(recording_scores(segments, model.config).values()) for segments in by_recording])


def embed(folder: StudyFolder, model_dir: Path, split: str) -> tuple[ECGFMModel, Embeddings]:
    """An encoder and its embeddings of a split, from the cache where they are there."""
    encoder = ECGFMModel.from_pretrained(model_dir).eval()
    found = embed_split(
        encoder,
        ECGFMFeatureExtractor.from_pretrained(model_dir),
        load_prepared(folder.store, split),
        batch_size=32,
        precision="bfloat16",
        cache_dir=folder.path / "embeddings",
    )
    return encoder, found


def write_embeddings(folder: StudyFolder, model_dir: Path, split: str) -> None:
    """Fills the cache of [`embed`]."""
    embed(folder, model_dir, split)


def run_heads(study: Study, folder: StudyFolder, arm: str, labels: int) -> None:
    """Fits the heads of an arm of `FITTED_ARMS`, one a draw, and keeps their test scores; unless that was done."""
    path = _heads_path(folder, arm, labels)
    if path.is_file():
        return
    rows = [rows_of_draw(study, folder, "labelled", labels, draw) for draw in range(study.draws[labels])]
    scores = (
        _feature_scores(folder, rows)
        if arm == FEATURES
        else _probe_scores(folder, folder.pretrained if arm == PROBE else folder.random, rows)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.stem}.{os.getpid()}.partial.npy")
    np.save(scratch, scores)
    os.replace(scratch, path)


def read_heads(folder: StudyFolder, arm: str, labels: int) -> np.ndarray:
    """Test scores (draws, recordings, labels) of [`run_heads`]."""
    return np.load(_heads_path(folder, arm, labels))


def _heads_path(folder: StudyFolder, arm: str, labels: int) -> Path:
    return folder.path / "heads" / f"{arm.replace(' ', '-')}-{labels}.npy"


def _probe_scores(folder: StudyFolder, model_dir: Path, draws: list[np.ndarray]) -> np.ndarray:
    """Of linear probes."""
    encoder, train = embed(folder, model_dir, "labelled")
    _, test = embed(folder, model_dir, "test")
    return np.array([fit_linear_probe(encoder, train.take(rows)).predict(test).scores for rows in draws])


def features_of(folder: StudyFolder, split: str) -> np.ndarray:
    """Hand-made features (recordings, features) of a split, kept on disk."""
    from ecgfm_hf.data import record_from_row

    from .handmade_features import feature_table

    path = folder.path / "features" / f"{split}.npy"
    if not path.is_file():
        rows = load_prepared(folder.store, split).with_format("arrow")
        parts = []
        for start in range(0, len(rows), 64):
            found = rows[list(range(start, min(start + 64, len(rows))))].to_pylist()
            parts.append(feature_table([record_from_row(row).signal for row in found])[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.stem}.{os.getpid()}.partial.npy")
        np.save(scratch, np.concatenate(parts))
        os.replace(scratch, path)
    return np.load(path)


def _feature_scores(folder: StudyFolder, draws: list[np.ndarray]) -> np.ndarray:
    """Of logistic regressions on hand-made features, fitted as probes are."""
    split, train, test = load_split(folder, "labelled"), features_of(folder, "labelled"), features_of(folder, "test")
    scores = []
    for rows in draws:
        mean, scale = train[rows].mean(axis=0), train[rows].std(axis=0) + 1e-9
        # A measurement that went wrong may be anything.
        near, far = (np.clip((values - mean) / scale, -5, 5) for values in (train[rows], test))
        heads = fit_heads(
            near,
            split.labels[rows].astype(np.float64),
            split.label_names,
            [split.recording_ids[row] for row in rows],
            [split.patient_ids[row] for row in rows],
        )
        # Logits: only their order matters for the AUROC.
        scores.append(far @ heads.weight.T + heads.bias)
    return np.array(scores)


__all__ = [
    "embed",
    "features_of",
    "load_split",
    "read_heads",
    "read_result",
    "read_scores",
    "run_cell",
    "run_heads",
    "write_embeddings",
]
