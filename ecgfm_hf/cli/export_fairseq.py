"""`ecgfm export-fairseq`: write a store in the layout of fairseq-signals."""

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import (
    CONSTANT_LEADS,
    NAN_SAMPLES,
    ConstantLeads,
    NanSamples,
    StoreArgument,
    quiet_libraries,
    show_progress,
)
from .outputs import Reads, Writes

if TYPE_CHECKING:
    from ..fairseq import ExportedFolder

_DEFAULT = "Default: as in the feature extractor."


def export_fairseq(
    store: StoreArgument,
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must be new or empty."), Writes()],
    root: Annotated[
        str | None,
        typer.Option(
            "--root", metavar="PATH", help="Folder of segments to write in the manifests (default: OUT/segmented)."
        ),
        Reads(),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Model folder whose feature extractor is used (default: the published settings).",
        ),
        Reads(),
    ] = None,
    missing_leads: Annotated[
        Literal["error", "zero"] | None,
        typer.Option("--missing-leads", help=f"Missing leads: refuse the recording, or set them to zero. {_DEFAULT}"),
    ] = None,
    nan_samples: Annotated[NanSamples | None, typer.Option("--nan-samples", help=f"{NAN_SAMPLES} {_DEFAULT}")] = None,
    constant_leads: Annotated[
        ConstantLeads | None, typer.Option("--constant-leads", help=f"{CONSTANT_LEADS} {_DEFAULT}")
    ] = None,
) -> int:
    """
    Write a store as a processed folder of fairseq-signals.

    Exit status: 0 all exported, 1 some recordings were skipped or the folder cannot be written, 2 usage.
    """
    from tqdm import tqdm

    given = {"missing_leads": missing_leads, "nan_samples": nan_samples, "constant_leads": constant_leads}
    policies: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with quiet_libraries(datasets_too=True):
        from ..data.opening import load_prepared
        from ..fairseq import export_fairseq_folder
        from ..feature_extraction_ecgfm import ECGFMFeatureExtractor

        if model is None:
            extractor = ECGFMFeatureExtractor(**policies)
        elif (model / "preprocessor_config.json").is_file():
            extractor = ECGFMFeatureExtractor.from_pretrained(model, **policies)
        else:
            raise FileNotFoundError(f"{model} has no preprocessor_config.json; give a model folder")
        # Streaming reads the store once, from first to last, and makes no copy of it.
        report = export_fairseq_folder(
            load_prepared(store, streaming=True),
            output_dir,
            extractor,
            root=root,
            errors="skip",
            progress=functools.partial(tqdm, unit="recording", disable=not show_progress()),
        )
    print(_summary(report))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for recording, reason in report.skipped[:5]:
        print(f"skipped {recording}: {reason}", file=sys.stderr)
    return 1 if report.skipped else 0


def _summary(report: "ExportedFolder") -> str:
    heading = f"{'split':<10}{'recordings':>12}{'segments':>12}{'unlabelled':>12}{'unpaired':>12}"
    lines = [heading]
    for split, count in report.recordings.items():
        numbers = (count, report.segments[split], report.unlabelled[split], report.unpaired[split])
        lines.append(f"{split:<10}" + "".join(f"{number:>12,}" for number in numbers))
    if any(report.unlabelled.values()):
        lines.append(
            "unlabelled: recordings with an unknown label, which y.npy cannot contain; in the CMSC manifests only"
        )
    if any(report.unpaired.values()):
        lines.append("unpaired: recordings of one segment, which have no pair; in no CMSC manifest")
    for reason, count in report.skip_reasons().most_common():
        lines.append(f"skipped {count:,}: {reason}")
    lines.append(f"labels: {', '.join(report.label_names) or 'none'}")
    lines.append(f"written to {report.path}")
    return "\n".join(lines)
