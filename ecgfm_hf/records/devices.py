"""
XML formats that `ecgdatakit` (Apache-2.0) parses: GE MUSE, HL7 aECG and Mortara EL250.

ecgdatakit continues with a warning where a file is damaged; here such a recording is refused. Before it may parse a
file, the guard of `xml_formats` has checked its size, nesting and numbers. Of what it finds, only the leads, the time,
age and sex are used: names, identifiers, birth dates and free text never reach the record.
"""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ..utils.files import private_folder
from .channels import Channels, Fault
from .record import ECGReadError, read_whole_file
from .xml_formats import LARGEST_XML, number_in, parse_xml

_OLDEST = 150
_AGES_PER_YEAR = {"MONTHS": 12, "WEEKS": 365.25 / 7, "DAYS": 365.25, "HOURS": 8766}
# In bytes of one each; in UTF-16 there are zeros between them.
_UTF_16 = re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*[\"']utf-16[^>]*\?>", re.IGNORECASE)

# Warnings about something else than the rhythm leads. Each begins with words that no file decides on, so that a name, a
# label or a code in a message cannot be taken for one of them.
_HARMLESS = re.compile(
    r"Sampling rate [\d.]+ Hz is not an integer; rounded to "  # the exact rate is used instead
    r"|Unit '.*' of \S* not recognised; value ignored$"  # of a measurement
    r"|\d+ representative beat series found; only the first is read$"
    r"|\d+ sequence sets in the representative beat series; "
    r"|Unrecognised sequences ignored in the representative beat series: "
    r"|Mortara TYPICAL_CYCLE has no ",
    re.DOTALL,
)


def read_muse(path: str, checksums: str = "verify") -> Channels:
    """Read the leads of a GE MUSE XML file as they are stored; none is computed from others."""
    root = parse_xml(path)
    _check_muse_rates(path, root)
    channels = _channels(path, _parse(path, "MUSE XML", "GEMuseXMLParser", checksums), _stated_rate)
    number, unit = (root.findtext(f"PatientDemographics/{name}", "").strip() for name in ("PatientAge", "AgeUnits"))
    per_year = _AGES_PER_YEAR.get(unit.upper())
    if channels.age is not None and per_year is not None and re.fullmatch(r"\d{1,6}", number, re.ASCII):
        return replace(channels, age=int(number) / per_year)  # ecgdatakit gives whole years
    return channels


def read_aecg(path: str) -> Channels:
    """Read the leads of an HL7 aECG file as they are stored; none is computed from others."""
    parse_xml(path)

    def rate(parsed: Any, lead: Any) -> float:
        # The reciprocal of an interval: 1 / 0.002 is not 500 to the last bit if the file has milliseconds.
        return round(float(parsed.raw_metadata["rhythm_time"]["sampling_rate_exact"]), 9)

    return _channels(path, _parse(path, "aECG", "HL7aECGParser"), rate)


def read_el250(path: str) -> Channels:
    """Read the leads of a Mortara EL250 or ELI XML file as they are stored."""
    for channel in parse_xml(path).iter("CHANNEL"):
        if not number_in(path, "sampling rate", channel.get("SAMPLE_FREQ")).is_integer():
            raise ECGReadError(f"{path}: found {channel.get('SAMPLE_FREQ')} Hz, expected a whole number in this format")
    return _channels(path, _parse(path, "Mortara XML", "MortaraEL250Parser"), _stated_rate)


def _stated_rate(parsed: Any, lead: Any) -> float:
    return float(lead.sampling_rate)


def _check_muse_rates(path: str, root: Element) -> None:
    """Refuse a sampling rate that the parser would silently round to a whole number."""
    for base in root.iter("SampleBase"):
        if (base.text or "").strip() and not number_in(path, "sampling rate", base.text).is_integer():
            raise ECGReadError(
                f"{path}: found a sampling rate of {base.text} Hz, expected a whole number in this format"
            )
    for exponent in root.iter("SampleExponent"):
        text = (exponent.text or "").strip()
        if text and not 0 <= number_in(path, "SampleExponent", text) <= 5:
            raise ECGReadError(f"{path}: found SampleExponent {text!r}, expected 0 to 5")


def _parse(path: str, name: str, parser: str, checksums: str = "verify") -> Any:
    """Parse a file by ecgdatakit, which must recognise it as the same format, and refuse what it warns about."""
    try:
        from ecgdatakit.exceptions import ChecksumWarning
        from ecgdatakit.parsing import FileParser
    except ImportError as error:
        raise ECGReadError(
            f"{path}: reading {name} needs ecgdatakit: pip install 'ecgfm-hf[formats]'",
            "needs ecgdatakit: pip install 'ecgfm-hf[formats]'",
        ) from error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with _as_declared(path) as readable:
                found = FileParser.detect_format(readable)
                if found is None or found["parser"] != parser:
                    raise ECGReadError(f"{path}: found {found and found['name']} by ecgdatakit, expected {name}")
                parsed = found["parser_class"]().parse(readable)
        except ECGReadError:
            raise
        except Exception as error:  # a parser meets damage with errors of every type
            raise ECGReadError(f"{path}: cannot read {name} ({_shortened(error)})") from error
    for warning in caught:
        if checksums == "ignore" and issubclass(warning.category, ChecksumWarning):
            continue
        if not _HARMLESS.match(str(warning.message)):
            raise ECGReadError(f"{path}: cannot read all of {name} ({_shortened(warning.message)})")
    return parsed


@contextlib.contextmanager
def _as_declared(path: str) -> Iterator[str]:
    """
    Give a file that ecgdatakit can read: itself, or a copy for a moment, without a declaration of UTF-16 that is wrong.

    .NET declares UTF-16 in text that is then saved as UTF-8.
    """
    content = read_whole_file(path, LARGEST_XML, "XML")
    declared = _UTF_16.match(content)
    if declared is None:
        yield path
        return
    with tempfile.NamedTemporaryFile(dir=private_folder(), suffix=".xml") as copy:
        copy.write(content[declared.end() :])
        copy.flush()
        yield copy.name


def _shortened(message: object) -> str:  # an exception or a warning
    # On one line and not in full: a parser may quote the file, and with it personal data.
    text = " ".join(str(message).split()) or type(message).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _channels(path: str, parsed: Any, rate_of: Callable[[Any, Any], float]) -> Channels:
    """Return what ecgdatakit parsed; `rate_of` gives the exact sampling rate of a lead, which it rounds."""
    if not parsed.leads:
        raise ECGReadError(f"{path}: found no leads", "no leads")
    names = _names(path, parsed.leads)
    calibrations = [_calibration(lead) for lead in parsed.leads]
    age, date = parsed.patient.age, parsed.recording.date
    faults = [fault for *_, fault in calibrations]
    return Channels(
        path=path,
        names=names,
        samples=_samples(path, names, parsed.leads),
        gain=[gain for gain, *_ in calibrations],
        baseline=[baseline for _, baseline, *_ in calibrations],
        units=[unit for *_, unit, _ in calibrations],
        rates=[rate_of(parsed, lead) for lead in parsed.leads],
        faults=faults if any(faults) else (),
        age=float(age) if age is not None and 0 <= age <= _OLDEST else None,
        sex=parsed.patient.sex if parsed.patient.sex in ("M", "F") else None,
        time=None if date is None else date.replace(tzinfo=None),
    )


def _names(path: str, leads: Sequence[Any]) -> list[str]:
    names: list[str] = []
    for lead in leads:
        name = lead.label.strip()
        base, _, number = name.rpartition("_")  # ecgdatakit makes a second lead II to II_2
        if number.isdigit() and base in names:
            raise ECGReadError(f"{path}: lead {base} occurs twice", "lead names")
        names.append(name)
    return names


def _calibration(lead: Any) -> tuple[float, float, str, Fault | None]:
    """Return gain, baseline, unit and fault of a lead. Its voltage by ecgdatakit is `samples * resolution + offset`."""
    unit, step, offset = lead.resolution_unit, float(lead.resolution), float(lead.offset)
    written = lead.adc_resolution_unit.strip()[:20]
    if not unit:
        return 1.0, 0.0, written, ("unknown unit", f"found the unit {written!r}, expected one of a voltage")
    if not step or not np.isfinite([step, offset]).all():
        return 1.0, 0.0, unit, ("gain", f"{step:g} {unit} a step and the offset {offset:g}: no voltage")
    if lead.annotations.get("LeadTimeOffset"):
        return 1.0, 0.0, unit, ("unsupported format", "shifted in time against the others, which is not supported")
    ambiguous = written in ("MV", "Mv")  # mega or milli; ecgdatakit takes it for mV
    return 1 / step, 0.0 - offset / step, written if ambiguous else unit, None


def _samples(path: str, names: Sequence[str], leads: Sequence[Any]) -> list[np.ndarray]:
    """Return a row per lead, as integers again, which they were before ecgdatakit made them floats."""
    rows = [np.asarray(lead.samples, dtype=np.float64) for lead in leads]
    for name, row in zip(names, rows, strict=True):
        if not np.isfinite(row).all():
            raise ECGReadError(f"{path}: lead {name} has samples that are no finite numbers", "infinite samples")
    for dtype in (np.dtype(np.int16), np.dtype(np.int32)):
        limits = np.iinfo(dtype)
        if all(len(row) and limits.min <= row.min() and row.max() <= limits.max for row in rows):
            whole = [row.astype(dtype) for row in rows]
            if all(np.array_equal(*pair) for pair in zip(whole, rows, strict=True)):
                return whole
    return rows


__all__ = ["read_aecg", "read_el250", "read_muse"]
