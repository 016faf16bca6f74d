"""The formats of ECG devices, parsed by `ecgdatakit` (Apache-2.0): EDF, MUSE XML, Sierra XML, aECG and SCP-ECG.

ecgdatakit goes on where it can and warns; a recording that it warns about is refused here. Of what it finds, only the
leads, the time, age and sex are looked at: names, identifiers, birth dates and free text never reach the record.
"""

import contextlib
import os
import re
import warnings

import numpy as np

from ..feature_extraction_ecgfm import canonical_lead_name, millivolts_per_unit
from .device_guards import check_scp, check_sierra, check_sierra_whole, check_whole_rates, check_xml
from .errors import ECGReadError, read_bytes, regular_file_size
from .record import ECGRecord

# Name, ecgdatakit's parser and the largest file that it is given.
_KINDS = {
    "edf": ("EDF", "EDFParser", 1 << 26),
    "muse": ("MUSE XML", "GEMuseXMLParser", 1 << 24),
    "sierra": ("Sierra XML", "SierraXMLParser", 1 << 24),
    "aecg": ("aECG", "HL7aECGParser", 1 << 24),
    "scp": ("SCP-ECG", "SCPECGParser", 1 << 24),
}

# Warnings about something else than the leads, and about the rate, whose exact value is taken instead.
_HARMLESS = re.compile(r"not an integer; rounded to|representative beat|median beats|not recognised; value ignored")
_OLDEST = 150


def read_device_file(path: str, kind: str) -> ECGRecord:
    """Read a file of the given format, the leads as they are stored: none is computed from others."""
    name, parser, largest = _KINDS[kind]
    size = regular_file_size(path)
    if size > largest:
        raise ECGReadError(f"{path}: {size} bytes, expected at most {largest} in a file of the format {name}")
    try:
        from ecgdatakit.parsing import FileParser
    except ImportError as error:
        raise ECGReadError(
            f"{path}: reading {name} needs ecgdatakit; pip install 'ecgfm-hf[formats]' has it"
        ) from error
    elements = _check(path, kind, read_bytes(path, size))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = FileParser.detect_format(path)
            if found is None or found["parser"] != parser:
                raise ECGReadError(
                    f"{path}: ecgdatakit does not take this for {name}, but for {found and found['name']}"
                )
            parsed = found["parser_class"]().parse(path)
        except ECGReadError:
            raise
        except Exception as error:  # what a parser meets in a damaged file has errors of every type
            raise ECGReadError(f"{path}: cannot read {name} ({_short(error)})") from error
    for warning in caught:
        if not _HARMLESS.search(str(warning.message)):
            raise ECGReadError(f"{path}: cannot read all of {name} ({_short(warning.message)})")
    record = _record(path, kind, parsed)
    if kind == "sierra":
        check_sierra_whole(path, elements, *record.samples.shape)
    return record


def _check(path: str, kind: str, content: bytes) -> dict:
    """What `check_xml` has found, once nothing in the file is too much for the parser."""
    elements = {}
    if kind == "scp":
        check_scp(path, content)
    elif kind != "edf":
        elements = check_xml(path, content)
        check_whole_rates(path, elements)
        if kind == "sierra":
            check_sierra(path, elements)
    return elements


def _short(message) -> str:
    # Without line ends and in part: a parser may quote the file, and with it what is nobody's business.
    text = " ".join(str(message).split()) or type(message).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _record(path: str, kind: str, parsed) -> ECGRecord:
    if not parsed.leads:
        raise ECGReadError(f"{path}: holds no leads")
    names = _names(path, parsed.leads)
    rates = {name: _rate(kind, parsed, lead) for name, lead in zip(names, parsed.leads, strict=True)}
    lengths = {name: len(lead.samples) for name, lead in zip(names, parsed.leads, strict=True)}
    for what, values in (("rates", rates), ("lengths", lengths)):
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise ECGReadError(f"{path}: leads of different {what} ({listed}) are not supported")
    if len({lead.annotations.get("start_sample", "1") for lead in parsed.leads}) > 1:
        raise ECGReadError(f"{path}: leads that begin at different times are not supported")
    calibrations = [_calibration(path, name, lead) for name, lead in zip(names, parsed.leads, strict=True)]
    age, date = parsed.patient.age, parsed.recording.date
    return ECGRecord(
        recording_id=os.path.splitext(os.path.basename(path))[0],
        path=path,
        samples=_samples(path, names, parsed.leads),
        gain=[gain for gain, _, _ in calibrations],
        baseline=[baseline for _, baseline, _ in calibrations],
        units=tuple(unit for _, _, unit in calibrations),
        sampling_rate=next(iter(rates.values())),
        lead_names=names,
        age=float(age) if age is not None and 0 <= age <= _OLDEST else None,
        sex=parsed.patient.sex if parsed.patient.sex in ("M", "F") else None,
        time=None if date is None else date.replace(tzinfo=None),
    )


def _names(path: str, leads) -> tuple[str, ...]:
    names = []
    for lead in leads:
        name = lead.label.strip()
        base, _, number = name.rpartition("_")  # ecgdatakit makes a second lead II to II_2
        if number.isdigit() and base in names:
            raise ECGReadError(f"{path}: lead {base} is there twice")
        with contextlib.suppress(ValueError):
            name = canonical_lead_name(name)
        names.append(name)
    return tuple(names)


def _rate(kind: str, parsed, lead) -> float:
    """The exact sampling rate; ecgdatakit rounds it to a whole number and keeps what it was."""
    kept = parsed.raw_metadata
    if kind == "scp":
        return 1e6 / kept["rhythm_sample_interval_us"]
    if kind == "aecg":
        # The reciprocal of an interval: 1 / 0.002 is no 500 to the last bit where milliseconds came in.
        return round(float(kept["rhythm_time"]["sampling_rate_exact"]), 9)
    return float(kept.get("exact_sampling_rates", {}).get(lead.label, lead.sampling_rate))


def _calibration(path: str, name: str, lead) -> tuple[float, float, str]:
    """Gain, baseline and unit of a lead, of which ecgdatakit says `samples * resolution + offset`."""
    unit, step, offset = lead.resolution_unit, float(lead.resolution), float(lead.offset)
    if not unit:
        written = lead.adc_resolution_unit.strip()[:20]
        raise ECGReadError(f"{path}: lead {name}: no unit of a voltage, found {written!r}")
    for spelling in (unit, lead.adc_resolution_unit):  # as ecgdatakit understands it, and as the file has it
        try:
            millivolts_per_unit(spelling)
        except ValueError as error:
            raise ECGReadError(f"{path}: lead {name}: {error}") from error
    if not step or not np.isfinite([step, offset]).all():
        raise ECGReadError(f"{path}: lead {name} has {step:g} {unit} a step and the offset {offset:g}, no voltage")
    if lead.annotations.get("LeadTimeOffset"):
        raise ECGReadError(f"{path}: lead {name} is shifted in time against the others, which is not supported")
    return 1 / step, 0.0 - offset / step, unit


def _samples(path: str, names, leads) -> np.ndarray:
    """(leads, samples) as integers again, which they were before ecgdatakit made them floats."""
    samples = np.stack([np.asarray(lead.samples, dtype=np.float64) for lead in leads])
    for name, row in zip(names, samples, strict=True):
        if not np.isfinite(row).all():
            raise ECGReadError(f"{path}: lead {name} holds values that are no numbers")
    for dtype in (np.int16, np.int32):
        limits = np.iinfo(dtype)
        if samples.size and limits.min <= samples.min() and samples.max() <= limits.max:
            whole = samples.astype(dtype)
            if np.array_equal(whole, samples):
                return whole
    return samples
