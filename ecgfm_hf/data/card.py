"""The dataset card of a store: what the report says, for readers and for the Hub."""

from collections.abc import Mapping
from typing import Any

from .store import UNSPLIT


def store_card(report: Mapping[str, Any]) -> str:
    """The text of a store's `README.md`. No ids, no paths of this machine."""
    splits = report["splits"]["recordings"]
    # Where nothing is split, the Hub's name for all of it is `train`; `all` it does not take.
    names = {name: "train" if name == UNSPLIT else name for name in splits}
    files = "\n".join(f'  - split: {names[name]}\n    path: "data/{name}-*.parquet"' for name in splits)
    counts = report["recordings"]
    synthetic = any("synthetic" in source.lower() for source in report["sources"])
    lines = [
        "---",
        f"configs:\n- config_name: default\n  data_files:\n{files}",
        "tags:\n- ecg\n- electrocardiogram" + ("\n- synthetic" if synthetic else ""),
        "---",
        "",
        f"# 12-lead ECG recordings from {report['source']}" + (" (synthetic)" if synthetic else ""),
        "",
        "One row a recording, samples as they came, prepared with `ecgfm prepare`. Read it with "
        "`ecgfm_hf.data.load_prepared`; `ecgfm_hf.data.as_model_inputs` gives what a model takes.",
        "",
        f"{counts['kept']:,} recordings ({report['hours']:,.1f} hours) of {counts['found']:,} found; "
        f"{counts['left_out']:,} left out.",
        "",
        _table(("left out because", "recordings"), report["left_out_by_reason"].items()),
        _table(("split", "recordings"), splits.items()),
        _table(("source", "recordings"), report["sources"].items()),
        _table(
            ("label", "positive", "unknown"),
            [(name, by["all"]["positive"], by["all"]["unknown"]) for name, by in report["label_counts"].items()],
        ),
        "\n".join(f"- {sentence}" for sentence in sentences(report)),
        "",
    ]
    return "\n".join(line for line in lines if line is not None) + "\n"


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What a user of the data must know: assumptions of the split, unknown patients, pseudonyms, quality."""
    told = list(report["splits"]["assumptions"]) + list(report["notes"])
    told += [f"{count:,} {what}." for what, count in report["quality"].items() if count]
    if report["pseudonymised"]:
        told.append(
            "Ids of recordings and patients are salted hashes, and paths are left out. Times, ages, sex and texts"
            " of reports are as they were, save the columns that were dropped."
        )
    if report["dropped_columns"]:
        told.append(f"Left empty: {', '.join(report['dropped_columns'])}.")
    return told


def _table(header: tuple[str, ...], rows) -> str | None:
    rows = [
        tuple(f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "/") for cell in row) for row in rows
    ]
    if not rows:
        return None
    cells = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"
