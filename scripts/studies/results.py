"""What the study found, as JSON and as a table for the README."""

import json
import math
import os
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ecgfm_hf.evaluation import auroc

from .arms import load_split, read_heads, read_result, read_scores
from .cohort import StudyFolder
from .paired import Estimate, estimate, judge, patient_weights
from .settings import ARMS, COMPARISONS, FINETUNED_ARMS, Cell, Study

RESULTS, TABLE = "results.json", "table.md"


def summarise(study: Study, folder: StudyFolder, chosen: dict[tuple[str, int], Cell], tuning: list[dict]) -> dict:
    """
    All figures of the draws that are finished: means over draws with intervals, paired differences, what was tried and
    chosen.

    Args:
        chosen: By arm and number of labels, the cell of draw 0.
        tuning: Results of the cells that were tried.
    """
    test = load_split(folder, "test")
    weights = patient_weights(test.patient_ids, study.resamples, study.seed)
    sizes: dict[str, Any] = {}
    for labels in study.draws:
        draws = finished_draws(study, folder, chosen, labels)
        if not draws:
            continue
        judged, by_label = {}, {}
        for arm in ARMS:
            scores = scores_of(folder, chosen, arm, labels, draws)
            judged[arm] = judge(test.labels, scores, weights)
            each = np.mean([auroc(test.labels, of) for of in scores], axis=0)
            by_label[arm] = dict(zip(test.label_names, each.tolist(), strict=True))
        sizes[str(labels)] = {
            "draws": draws,
            "macro_auroc": {arm: asdict(estimate(found)) for arm, found in judged.items()},
            "macro_auroc_of_draws": {arm: found.whole.tolist() for arm, found in judged.items()},
            "differences": {
                f"{one} - {other}": asdict(estimate(judged[one] - judged[other])) for one, other in COMPARISONS
            },
            "auroc": by_label,
        }
    return {
        "finished": all(sizes.get(str(labels), {}).get("draws") == draws for labels, draws in study.draws.items()),
        "study": study.to_dict(),
        "recordings": {name: len(load_split(folder, name).recording_ids) for name in ("labelled", "tune", "valid")}
        | {"pretrain": _pretraining_recordings(folder), "test": len(test.recording_ids)},
        "test_patients": len(set(test.patient_ids)),
        "chosen": [
            {"arm": arm, "labels": labels, "learning_rate": cell.learning_rate, "steps": cell.steps}
            for (arm, labels), cell in chosen.items()
        ],
        "tried": [{**found["cell"], "macro_auroc": found["macro_auroc"]} for found in tuning],
        "sizes": sizes,
        "training_seconds": round(_seconds(folder), 1),
    }


def finished_draws(study: Study, folder: StudyFolder, chosen: dict[tuple[str, int], Cell], labels: int) -> int:
    """How many draws, from the first on, have been trained in all arms."""
    for draw in range(study.draws[labels]):
        if any(read_result(folder, replace(chosen[arm, labels], draw=draw)) is None for arm in FINETUNED_ARMS):
            return draw
    return study.draws[labels]


def scores_of(
    folder: StudyFolder, chosen: dict[tuple[str, int], Cell], arm: str, labels: int, draws: int
) -> list[np.ndarray]:
    """Test scores (recordings, labels) of an arm in the first draws, each."""
    if arm not in FINETUNED_ARMS:
        return list(read_heads(folder, arm, labels)[:draws])
    return [read_scores(folder, replace(chosen[arm, labels], draw=draw)) for draw in range(draws)]


def write_results(folder: StudyFolder, found: dict) -> None:
    """Writes `results.json` and `table.md`."""
    for name, text in ((RESULTS, json.dumps(_without_nan(found), indent=1) + "\n"), (TABLE, markdown(found))):
        scratch = folder.path / f"{name}.{os.getpid()}.partial"
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, folder.path / name)


def markdown(found: dict) -> str:
    """Two tables: macro AUROC of every arm, and the paired differences."""
    lines = ["| labelled recordings | draws | " + " | ".join(ARMS) + " |"]
    lines.append("| ---: | ---: |" + " ---: |" * len(ARMS))
    for labels, of in found["sizes"].items():
        cells = [f"{of['macro_auroc'][arm]['mean']:.3f}" for arm in ARMS]
        lines.append(f"| {int(labels):,} | {of['draws']} | " + " | ".join(cells) + " |")
    names = [f"{one} - {other}" for one, other in COMPARISONS]
    lines += ["", "| labelled recordings | " + " | ".join(names) + " |"]
    lines.append("| ---: |" + " ---: |" * len(names))
    for labels, of in found["sizes"].items():
        cells = [_interval(Estimate(**of["differences"][name])) for name in names]
        lines.append(f"| {int(labels):,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(of: Estimate) -> str:
    if math.isnan(of.low):
        return f"{of.mean:+.3f}"
    return f"{of.mean:+.3f} ({of.low:+.3f} to {of.high:+.3f})"


def _pretraining_recordings(folder: StudyFolder) -> int:
    from ecgfm_hf.data import read_report

    return read_report(folder.store)["splits"]["recordings"]["pretrain"]


def _seconds(folder: StudyFolder) -> float:
    files = folder.cells.glob("*.json")
    return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in files)


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = ["RESULTS", "TABLE", "finished_draws", "markdown", "scores_of", "summarise", "write_results"]
