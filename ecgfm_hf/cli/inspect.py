"""`ecgfm inspect`: show what recordings contain, and what preprocessing would do to them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import CommandFailed, ReadingOptions, expand_options, loading, quiet_libraries
from .outputs import Reads, Writes
from .prediction_pages import is_page

if TYPE_CHECKING:
    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
    from ..records import ECGRecord

_SUFFIXES = (".png", ".pdf")
_LABEL_WIDTH = 15


@expand_options
def inspect(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Recordings (.hea or record name, DICOM file, ...) or folders."),
        Reads(),
    ],
    options: ReadingOptions,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Show the preprocessing of this model (default: as published, 5 s at 500 Hz).",
        ),
        Reads(),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="PATH",
            help="Draw the 12-lead page of one recording: .png or .pdf (needs ecgfm-hf\\[plots]).",
        ),
        Writes(is_page),
    ] = None,
    plot_start: Annotated[
        float, typer.Option("--plot-start", metavar="S", help="Start of the page, in seconds of the file.")
    ] = 0.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is not a page of this package.")
    ] = False,
) -> int:
    """
    Show what recordings contain: format, leads, units, sampling rate, length.

    It also shows what preprocessing would do: resampling, segments, warnings, and leads that are derived, missing, flat
    or unused. It runs no model.

    Exit status: 0 all can be scored, 1 some cannot be read or would be refused, 2 usage.
    """
    if plot is not None and plot.suffix.lower() not in _SUFFIXES:
        raise CommandFailed(f"--plot must end in {' or '.join(_SUFFIXES)}, found: {plot}")
    with quiet_libraries():
        return _inspect(inputs, options, model, as_json, plot, plot_start)


def _inspect(
    inputs: list[str], options: ReadingOptions, model: str | None, as_json: bool, plot: Path | None, plot_start: float
) -> int:
    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
    from ..inference.recording_inputs import find_recordings
    from ..inference.recording_sources import FileSource, StoreSource
    from ..model_folder import load_feature_extractor
    from ..records import ECGReadError
    from ..records.reading import format_name
    from .main import in_options, load_command

    if model is None:
        extractor = ECGFMFeatureExtractor(**options.policies)
    else:
        with loading(model):
            extractor = load_feature_extractor(model, **options.policies)
    source = find_recordings(inputs, extractor, arguments=options.arguments)
    if plot is not None and len(source) != 1:
        raise CommandFailed(f"--plot draws the page of one recording, found {len(source)}")
    found, failed = [], False
    for index in range(len(source)):
        name = source.failed(index, "").recording_id
        try:
            record = source.record(index)
            stored = "store" if isinstance(source, StoreSource) else "processed folder of fairseq-signals"
            format_ = format_name(record.path) if isinstance(source, FileSource) else stored
        except ECGReadError as error:
            described = {"recording": name, "error": str(error).removeprefix(f"{name}: ")}
        else:
            described = {"recording": name, **describe(record, format_, extractor)}
            if plot is not None:
                from ..interpretation import plot_ecg, save_page

                rhythm = "II" if "II" in record.lead_names else record.lead_names[0]
                save_page(plot_ecg(record, start_s=plot_start, rhythm_lead=rhythm), plot)
        failed |= "error" in described or "refused" in described["preprocessing"]
        if as_json:
            found.append(described)
        else:
            print(in_options("\n".join(_lines(described)), load_command("inspect")))
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    return 1 if failed else 0


def describe(record: "ECGRecord", format_: str, extractor: "ECGFMFeatureExtractor") -> dict[str, Any]:
    """
    Return what a recording contains, and what preprocessing would do, as `--json` prints it.

    If the extractor would refuse the recording, `preprocessing` has only the key `refused`, with the reason.
    """
    samples = record.samples.shape[1]
    return {
        "format": format_,
        "leads": list(record.lead_names),
        "units": list(record.units),
        "sampling_rate": record.sampling_rate,
        "samples": samples,
        "seconds": samples / record.sampling_rate,
        "warnings": list(record.warnings),
        "preprocessing": _preprocessing(record, extractor),
    }


def _preprocessing(record: "ECGRecord", extractor: "ECGFMFeatureExtractor") -> dict[str, Any]:
    try:
        prepared = extractor.prepare_recording(
            record.signal, record.sampling_rate, record.lead_names, "mV", name=record.path
        )
    except ValueError as error:
        return {"refused": str(error).removeprefix(f"{record.path}: ")}
    signals = dict(zip(extractor.lead_names, (prepared.std > 0).tolist(), strict=True))
    missing = [name for name in extractor.lead_names if name not in record.lead_names]
    return {
        "sampling_rate": extractor.sampling_rate,
        "segments": len(prepared.segments),
        "segment_seconds": extractor.segment_seconds,
        "derived_leads": [name for name in missing if signals[name]],
        "missing_leads": [name for name in missing if not signals[name]],
        "flat_leads": [name for name, has_signal in signals.items() if not has_signal and name not in missing],
        "unused_leads": [name for name in record.lead_names if name not in extractor.lead_names],
        "warnings": prepared.warnings,
    }


def _lines(described: dict[str, Any]) -> list[str]:
    """Format the result of [`describe`] as lines of text."""
    if "error" in described:
        return [described["recording"], _line("error", described["error"])]
    units = dict.fromkeys(described["units"])
    lines = [
        described["recording"],
        _line("format", described["format"]),
        _line("leads", f"{len(described['leads'])}: {', '.join(described['leads'])}"),
        _line("units", ", ".join(units if len(units) == 1 else described["units"])),
        _line("sampling rate", f"{described['sampling_rate']:g} Hz"),
        _line("length", f"{described['seconds']:g} s ({described['samples']} samples)"),
        *(_line("warning", warning) for warning in described["warnings"]),
    ]
    steps = described["preprocessing"]
    if "refused" in steps:
        return [*lines, _line("preprocessing", f"refused: {steps['refused']}")]
    rate = f"{steps['sampling_rate']:g} Hz"
    same = described["sampling_rate"] == steps["sampling_rate"]
    rate = rate if same else f"{rate}, resampled from {described['sampling_rate']:g} Hz"
    number = steps["segments"]
    lines.append(
        _line("preprocessing", f"{number} segment{'s' * (number != 1)} of {steps['segment_seconds']:g} s at {rate}")
    )
    for key in ("derived_leads", "missing_leads", "flat_leads", "unused_leads"):
        if steps[key]:
            lines.append(_line(key.replace("_", " "), ", ".join(steps[key])))
    listed = ("missing lead ", "ignored lead ")  # above
    return lines + [_line("warning", warning) for warning in steps["warnings"] if not warning.startswith(listed)]


def _line(label: str, text: str) -> str:
    return f"  {label.ljust(_LABEL_WIDTH)}{text}"
