"""`ecgfm export-fairseq`: its arguments, and what it prints."""

import argparse
import functools
import sys
from pathlib import Path

from ..fairseq.folder_writing import ExportedFolder, export_fairseq_folder
from ..fairseq.segments import FairseqFolderError

_POLICIES = {
    "missing_leads": ("error", "zero"),
    "nan_samples": ("error", "zero", "interpolate"),
    "constant_leads": ("zero", "error"),
}


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm export-fairseq`."""
    parser.add_argument("store", metavar="STORE", type=Path, help="folder that `ecgfm prepare` wrote")
    parser.add_argument("output_dir", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument(
        "--root", metavar="PATH", help="where the manifests say that the segments are (default: OUT/segmented)"
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="model folder whose feature extractor is used (default: the published)",
    )
    for name, choices in _POLICIES.items():
        help_text = "default: the extractor's own"
        parser.add_argument(f"--{name.replace('_', '-')}", choices=choices, help=help_text)


def run_export(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm export-fairseq`.

    Returns:
        `int`: 0 all exported, 1 some recordings were left out or the folder cannot be written, 2 usage.
    """
    from tqdm import tqdm

    from ..data.store import StoreError, load_prepared
    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor

    policies = {name: getattr(args, name) for name in _POLICIES if getattr(args, name) is not None}
    try:
        if args.model is None:
            extractor = ECGFMFeatureExtractor(**policies)
        elif (args.model / "preprocessor_config.json").is_file():
            extractor = ECGFMFeatureExtractor.from_pretrained(args.model, **policies)
        else:
            raise FileNotFoundError(f"{args.model} has no preprocessor_config.json; give a model folder")
        # Streaming reads the store once, from first to last, and makes no copy of it.
        report = export_fairseq_folder(
            load_prepared(args.store, streaming=True),
            args.output_dir,
            extractor,
            root=args.root,
            errors="skip",
            progress=functools.partial(tqdm, unit="recording", disable=not sys.stderr.isatty()),
        )
    except (StoreError, FairseqFolderError, FileNotFoundError, FileExistsError, ValueError) as error:
        print(f"ecgfm export-fairseq: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no space, no permission
        print(f"ecgfm export-fairseq: {error}", file=sys.stderr)
        return 1
    print(_summary(report))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for recording, reason in report.skipped[:5]:
        print(f"skipped {recording}: {reason}", file=sys.stderr)
    return 1 if report.skipped else 0


def _summary(report: ExportedFolder) -> str:
    heading = f"{'split':<10}{'recordings':>12}{'segments':>12}{'unlabelled':>12}{'unpaired':>12}"
    lines = [heading]
    for split, count in report.recordings.items():
        numbers = (count, report.segments[split], report.unlabelled[split], report.unpaired[split])
        lines.append(f"{split:<10}" + "".join(f"{number:>12,}" for number in numbers))
    if any(report.unlabelled.values()):
        lines.append(
            "unlabelled: a label is unknown, so they are in the CMSC manifests only (y.npy has no unknown labels)"
        )
    if any(report.unpaired.values()):
        lines.append("unpaired: they have one segment, so they are in no CMSC manifest")
    for reason, count in report.skip_reasons().most_common():
        lines.append(f"skipped {count:,}: {reason}")
    lines.append(f"labels: {', '.join(report.label_names) or 'none'}")
    lines.append(f"written to {report.path}")
    return "\n".join(lines)
