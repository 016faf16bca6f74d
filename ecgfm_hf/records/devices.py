"""
The formats of ECG devices, parsed by `ecgdatakit` (Apache-2.0): EDF, MUSE XML, Sierra XML, aECG and SCP-ECG.

ecgdatakit continues with a warning where a file is damaged; here such a recording is refused. Before it may parse a
file, its size, nesting and numbers are checked, so that no file can take all memory or pass a wrong number. Of what it
finds, only the leads, the time, age and sex are used: names, identifiers, birth dates and free text never reach the
record.

Why guards of our own: they hold for every version of ecgdatakit and of its XML and LZW decoders.
"""

import base64
import binascii
import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from xml.parsers import expat

import numpy as np

from ..feature_extraction_ecgfm import canonical_lead_name, millivolts_per_unit
from .record import ECGReadError, ECGRecord, file_stem, read_whole_file

_LARGEST_EDF, _LARGEST = 1 << 26, 1 << 24
_OLDEST = 150

# Warnings about something else than the rhythm leads. Each begins with words that no file decides on, so that a name, a
# label or a code in a message cannot be taken for one of them.
_HARMLESS = re.compile(
    r"Sampling rate [\d.]+ Hz is not an integer; rounded to "  # the exact rate is used instead
    r"|Unit '.*' of \S* not recognised; value ignored$"  # of a measurement
    r"|\d+ representative beat series found; only the first is read$"
    r"|\d+ sequence sets in the representative beat series; "
    r"|Unrecognised sequences ignored in the representative beat series: "
    r"|Sierra XML: (?:representative beats compressed with |<repbeats> has no )"
    r"|SCP-ECG: Section 5 (?:is Huffman encoded but|amplitude multiplier is 0, median beats left unscaled$)"
    r"|SCP-ECG: reference beat length \d+ ms is shorter than one sample, median beats skipped$",
    re.DOTALL,
)

_Elements = dict[str, list[tuple[dict[str, str], str]]]  # attributes and text of the elements with a name


def read_edf(path: str) -> ECGRecord:
    """Read the leads of an EDF file as they are stored; none is computed from others."""
    read_whole_file(path, _LARGEST_EDF, "EDF")

    def rate(parsed: Any, lead: Any) -> float:
        return float(parsed.raw_metadata.get("exact_sampling_rates", {}).get(lead.label, lead.sampling_rate))

    return _record(path, _parse(path, "EDF", "EDFParser"), rate)


def read_muse(path: str) -> ECGRecord:
    """Read the leads of a GE MUSE XML file as they are stored; none is computed from others."""
    elements = check_xml(path, read_whole_file(path, _LARGEST, "MUSE XML"))
    _check_whole_rates(path, elements)
    return _record(path, _parse(path, "MUSE XML", "GEMuseXMLParser"), _stated_rate)


def read_sierra(path: str) -> ECGRecord:
    """Read the leads of a Philips Sierra XML file as they are stored; none is computed from others."""
    elements = check_xml(path, read_whole_file(path, _LARGEST, "Sierra XML"))
    _check_whole_rates(path, elements)
    _check_sierra(path, elements)
    record = _record(path, _parse(path, "Sierra XML", "SierraXMLParser"), _stated_rate)
    _check_sierra_complete(path, elements, *record.samples.shape)
    return record


def read_aecg(path: str) -> ECGRecord:
    """Read the leads of an HL7 aECG file as they are stored; none is computed from others."""
    check_xml(path, read_whole_file(path, _LARGEST, "aECG"))

    def rate(parsed: Any, lead: Any) -> float:
        # The reciprocal of an interval: 1 / 0.002 is not 500 to the last bit if the file has milliseconds.
        return round(float(parsed.raw_metadata["rhythm_time"]["sampling_rate_exact"]), 9)

    return _record(path, _parse(path, "aECG", "HL7aECGParser"), rate)


def read_scp(path: str) -> ECGRecord:
    """Read the leads of an SCP-ECG file as they are stored; none is computed from others."""
    _check_scp(path, read_whole_file(path, _LARGEST, "SCP-ECG"))

    def rate(parsed: Any, lead: Any) -> float:
        return 1e6 / parsed.raw_metadata["rhythm_sample_interval_us"]

    return _record(path, _parse(path, "SCP-ECG", "SCPECGParser"), rate)


def _stated_rate(parsed: Any, lead: Any) -> float:
    return float(lead.sampling_rate)


def _parse(path: str, name: str, parser: str) -> Any:
    """Parse a file by ecgdatakit, which must recognise it as the same format, and refuse what it warns about."""
    try:
        from ecgdatakit.parsing import FileParser
    except ImportError as error:
        raise ECGReadError(
            f"{path}: reading {name} needs ecgdatakit: pip install 'ecgfm-hf[formats]'",
            "needs ecgdatakit: pip install 'ecgfm-hf[formats]'",
        ) from error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = FileParser.detect_format(path)
            if found is None or found["parser"] != parser:
                raise ECGReadError(f"{path}: found {found and found['name']} by ecgdatakit, expected {name}")
            parsed = found["parser_class"]().parse(path)
        except ECGReadError:
            raise
        except Exception as error:  # a parser meets damage with errors of every type
            raise ECGReadError(f"{path}: cannot read {name} ({_shortened(error)})") from error
    for warning in caught:
        if not _HARMLESS.match(str(warning.message)):
            raise ECGReadError(f"{path}: cannot read all of {name} ({_shortened(warning.message)})")
    return parsed


def _shortened(message: object) -> str:  # an exception or a warning
    # On one line and not in full: a parser may quote the file, and with it personal data.
    text = " ".join(str(message).split()) or type(message).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _record(path: str, parsed: Any, rate_of: Callable[[Any, Any], float]) -> ECGRecord:
    """Build the record; `rate_of` gives the exact sampling rate of a lead, which ecgdatakit rounds to whole numbers."""
    if not parsed.leads:
        raise ECGReadError(f"{path}: found no leads", "no leads")
    names = _names(path, parsed.leads)
    rates = {name: rate_of(parsed, lead) for name, lead in zip(names, parsed.leads, strict=True)}
    lengths = {name: len(lead.samples) for name, lead in zip(names, parsed.leads, strict=True)}
    for what, values in (("rates", rates), ("lengths", lengths)):
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise ECGReadError(
                f"{path}: leads of different {what} ({listed}) are not supported", "leads of different lengths or rates"
            )
    if len({lead.annotations.get("start_sample", "1") for lead in parsed.leads}) > 1:
        raise ECGReadError(f"{path}: leads that begin at different times are not supported")
    calibrations = [_calibration(path, name, lead) for name, lead in zip(names, parsed.leads, strict=True)]
    age, date = parsed.patient.age, parsed.recording.date
    return ECGRecord(
        recording_id=file_stem(path),
        path=path,
        samples=_samples(path, names, parsed.leads),
        gain=np.array([gain for gain, _, _ in calibrations]),
        baseline=np.array([baseline for _, baseline, _ in calibrations]),
        units=tuple(unit for _, _, unit in calibrations),
        sampling_rate=next(iter(rates.values())),
        lead_names=names,
        age=float(age) if age is not None and 0 <= age <= _OLDEST else None,
        sex=parsed.patient.sex if parsed.patient.sex in ("M", "F") else None,
        time=None if date is None else date.replace(tzinfo=None),
    )


def _names(path: str, leads: Sequence[Any]) -> tuple[str, ...]:
    names: list[str] = []
    for lead in leads:
        name = lead.label.strip()
        base, _, number = name.rpartition("_")  # ecgdatakit makes a second lead II to II_2
        if number.isdigit() and base in names:
            raise ECGReadError(f"{path}: lead {base} occurs twice", "lead names")
        with contextlib.suppress(ValueError):
            name = canonical_lead_name(name)
        names.append(name)
    return tuple(names)


def _calibration(path: str, name: str, lead: Any) -> tuple[float, float, str]:
    """Return gain, baseline and unit of a lead, whose voltage by ecgdatakit is `samples * resolution + offset`."""
    unit, step, offset = lead.resolution_unit, float(lead.resolution), float(lead.offset)
    if not unit:
        written = lead.adc_resolution_unit.strip()[:20]
        raise ECGReadError(
            f"{path}: lead {name}: found the unit {written!r}, expected one of a voltage", "unknown unit"
        )
    for spelling in (unit, lead.adc_resolution_unit):  # by ecgdatakit, and in the file
        try:
            millivolts_per_unit(spelling)
        except ValueError as error:
            raise ECGReadError(f"{path}: lead {name}: {error}") from error
    if not step or not np.isfinite([step, offset]).all():
        raise ECGReadError(
            f"{path}: lead {name} has {step:g} {unit} a step and the offset {offset:g}: no voltage", "gain"
        )
    if lead.annotations.get("LeadTimeOffset"):
        raise ECGReadError(f"{path}: lead {name} is shifted in time against the others, which is not supported")
    return 1 / step, 0.0 - offset / step, unit


def _samples(path: str, names: Sequence[str], leads: Sequence[Any]) -> np.ndarray:
    """Return (leads, samples) as integers again, which they were before ecgdatakit made them floats."""
    samples = np.stack([np.asarray(lead.samples, dtype=np.float64) for lead in leads])
    for name, row in zip(names, samples, strict=True):
        if not np.isfinite(row).all():
            raise ECGReadError(f"{path}: lead {name} has samples that are no finite numbers", "infinite samples")
    for dtype in (np.dtype(np.int16), np.dtype(np.int32)):
        limits = np.iinfo(dtype)
        if samples.size and limits.min <= samples.min() and samples.max() <= limits.max:
            whole = samples.astype(dtype)
            if np.array_equal(whole, samples):
                return whole
    return samples


# What is checked before ecgdatakit parses a file

_DEEPEST, _MOST_ELEMENTS = 64, 500_000
_MOST_LEADS = 64
_MOST_SAMPLES = 1 << 21  # of all leads: twelve at 500 Hz for six minutes; a resting ECG takes ten seconds
_LZW_BITS = 10  # of a code in Philips's XLI compression


def check_xml(path: str, content: bytes) -> _Elements:
    """
    Refuse XML that is malformed, nested too deeply, declares entities or has numbers that are not plain.

    A document type is allowed, since GE MUSE writes one, but nothing that it refers to is ever opened.

    Returns:
        The elements that declare the size of the waveforms, by name.
    """
    try:
        return _walk(path, content, None)
    except expat.ExpatError as error:
        first = error
    try:  # files in Latin-1 that do not declare it
        return _walk(path, content, "iso-8859-1")
    except expat.ExpatError:
        raise ECGReadError(f"{path}: malformed XML ({first})") from first


# Elements whose attributes and text are compared with what the parser reads.
_WANTED = (
    *("parsedwaveforms", "numberchannelsallocated", "numberchannelsvalid", "numberofleads", "samplingrate"),
    *("SampleBase", "SampleExponent"),
)
# Elements that hold numbers in text, and attributes that hold one. Python also reads 1_000 and digits of other scripts
# as numbers, and ecgdatakit leaves the reading to Python; no device writes them.
_NUMBERS = {
    *("digits", "SampleBase", "SampleExponent", "LeadAmplitudeUnitsPerBit", "LeadSampleCountTotal", "LeadSampleSize"),
    *("LeadByteCountTotal", "FirstSampleBaseline", "LeadTimeOffset", "LeadOffsetFirstSample", "samplingrate"),
    *("resolution", "signaloffset", "numberchannelsallocated", "numberchannelsvalid", "numberofleads"),
}
_NUMBER_VALUES = {"scale", "origin", "increment"}
_NUMBER_ATTRIBUTES = {"numberofleads", "durationperchannel", "samplespersecond", "resolution", "signaloffset"}
_NOT_PLAIN = re.compile(r"[^-+0-9.eE \t\r\n]")


def _walk(path: str, content: bytes, encoding: str | None) -> _Elements:
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    open_elements: list[str] = []
    found: dict[str, list[tuple[dict[str, str], list[str]]]] = {}
    count = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        tag = tag.rpartition(":")[2]
        open_elements.append(tag)
        if len(open_elements) > _DEEPEST or count > _MOST_ELEMENTS:
            raise ECGReadError(f"{path}: found XML of more than {_DEEPEST} levels or {_MOST_ELEMENTS} elements")
        if tag in _WANTED:
            found.setdefault(tag, []).append((attributes, []))
        if tag in _NUMBER_VALUES:
            _check_plain(path, tag, attributes.get("value", ""))
        elif tag == "parsedwaveforms":
            for name in _NUMBER_ATTRIBUTES & attributes.keys():
                _check_plain(path, name, attributes[name])

    def end(tag: str) -> None:
        open_elements.pop()

    def text(data: str) -> None:
        tag = open_elements[-1] if open_elements else ""
        if tag in _WANTED:
            found[tag][-1][1].append(data)
        if tag in _NUMBERS:
            _check_plain(path, tag, data)

    def entity(*_: object) -> None:  # their arguments, none of which is used
        raise ECGReadError(f"{path}: declares XML entities, which an ECG does not need and which may do harm")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.EntityDeclHandler = parser.UnparsedEntityDeclHandler = entity
    try:
        parser.Parse(content, True)
    except (LookupError, ValueError) as error:  # an unknown encoding, or one of several bytes
        if isinstance(error, ECGReadError):
            raise
        raise ECGReadError(f"{path}: XML in an encoding that cannot be read ({error})") from error
    return {tag: [(attributes, "".join(parts)) for attributes, parts in items] for tag, items in found.items()}


def _check_plain(path: str, name: str, text: str) -> None:
    found = _NOT_PLAIN.search(text)
    if found:
        raise ECGReadError(f"{path}: found {found[0]!r} in a number of {name}, expected plain decimal numbers")


def _check_whole_rates(path: str, elements: _Elements) -> None:
    """Refuse a sampling rate that the parsers for MUSE and Sierra would silently round to a whole number."""
    rates = [text for _, text in elements.get("SampleBase", []) + elements.get("samplingrate", [])]
    rates += [attributes.get("samplespersecond", "") for attributes, _ in elements.get("parsedwaveforms", [])]
    for rate in filter(None, map(str.strip, rates)):
        if not _number(path, "sampling rate", rate).is_integer():
            raise ECGReadError(f"{path}: found a sampling rate of {rate} Hz, expected a whole number in this format")
    for _, exponent in elements.get("SampleExponent", []):
        if exponent.strip() and not 0 <= _number(path, "SampleExponent", exponent) <= 5:
            raise ECGReadError(f"{path}: found SampleExponent {exponent.strip()!r}, expected 0 to 5")


def _check_sierra(path: str, elements: _Elements) -> None:
    """Refuse a Sierra file that declares too many leads, or whose compressed samples unpack to too many."""
    waveforms = elements.get("parsedwaveforms", [])
    if len(waveforms) != 1:
        raise ECGReadError(f"{path}: found {len(waveforms)} elements parsedwaveforms, expected one")
    attributes, text = waveforms[0]
    declared = [number for tag in _WANTED[1:4] for _, number in elements.get(tag, [])]
    for number in filter(None, map(str.strip, [*declared, attributes.get("numberofleads", "")])):
        if not 1 <= _number(path, "number of leads", number) <= _MOST_LEADS:
            raise ECGReadError(f"{path}: found {number[:20]} leads, expected 1 to {_MOST_LEADS}")
    if attributes.get("dataencoding") != "Base64":
        _check_plain(path, "parsedwaveforms", text)
        return
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ECGReadError(f"{path}: parsedwaveforms is not Base64 ({error})") from error
    if _is_xli(attributes):
        if len(content) > 2 * _MOST_SAMPLES:
            raise ECGReadError(f"{path}: {len(content)} compressed bytes, expected at most {2 * _MOST_SAMPLES}")
        _check_xli(path, content)


def _check_xli(path: str, content: bytes) -> None:
    left = 2 * _MOST_SAMPLES
    for chunk in _xli_chunks(content):
        left -= _lzw_length(chunk, left)
        if left < 0:
            raise ECGReadError(f"{path}: the compressed samples unpack to more than {_MOST_SAMPLES}")


def _xli_chunks(content: bytes) -> Iterator[bytes]:
    """Yield the compressed leads, each after eight bytes of which four are its length."""
    at = 0
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "little", signed=True)
        if size <= 0:
            return  # for the parser to refuse
        yield content[at + 8 : at + 8 + size]
        at += 8 + size


def _check_sierra_complete(path: str, elements: _Elements, leads: int, samples: int) -> None:
    """Refuse a Sierra file with more samples than it declares, which are all that the parser reads."""
    attributes, text = elements["parsedwaveforms"][0]
    if attributes.get("dataencoding") != "Base64":
        found, expected, what = len(text.split()), leads * samples, "values"
    else:
        content = base64.b64decode("".join(text.split()))
        if _is_xli(attributes):
            chunks = list(_xli_chunks(content))
            found, expected, what = len(chunks), leads, "compressed leads"
            longest = max(_lzw_length(chunk, 2 * _MOST_SAMPLES) for chunk in chunks)
            if longest > 2 * samples:
                raise ECGReadError(f"{path}: found leads of {longest // 2} samples, expected {samples} by the duration")
        else:
            found, expected, what = len(content), 2 * leads * samples, "bytes"
    if found != expected:
        raise ECGReadError(f"{path}: found {found} {what}, expected {expected} ({leads} leads of {samples} samples)")


def _is_xli(attributes: dict[str, str]) -> bool:
    return (attributes.get("compression") or attributes.get("compressmethod") or "").upper() == "XLI"


def _lzw_length(chunk: bytes, most: int) -> int:
    """Return how many bytes an LZW stream unpacks to, from the codes alone; more than `most` if it is too many."""
    digits = format(int.from_bytes(chunk, "big"), f"0{8 * len(chunk)}b") if chunk else ""
    lengths, previous, total = dict.fromkeys(range(256), 1), 0, 0
    following, last = 256, (1 << _LZW_BITS) - 2
    for at in range(0, len(digits) - _LZW_BITS + 1, _LZW_BITS):
        code = int(digits[at : at + _LZW_BITS], 2)
        if code > last or total > most or (code not in lengths and not previous):
            break
        length = lengths.setdefault(code, previous + 1)
        if previous and following <= last:
            lengths[following] = previous + 1
            following += 1
        previous = length
        total += length
    return total


def _check_scp(path: str, content: bytes) -> None:
    """Refuse an SCP-ECG file that declares more samples than its bytes can hold at one bit a sample."""
    sections = _scp_sections(content)
    if 3 not in sections:
        return  # for the parser to refuse
    body = sections[3]
    leads = body[0] if body else 0
    counts: list[float] = []
    for at in range(2, 2 + 9 * leads, 9):
        first, last = (int.from_bytes(body[at + i : at + i + 4], "little") for i in (0, 4))
        counts.append(last - first + 1)
    if 4 in sections and 5 in sections:  # the length of the reference beat is its own declaration
        interval = int.from_bytes(sections[5][2:4], "little")
        counts.append(int.from_bytes(sections[4][:2], "little") * 1000 / interval if interval else math.inf)
    if leads > _MOST_LEADS or max(counts, default=0) > 8 * len(content) or sum(counts) > _MOST_SAMPLES:
        raise ECGReadError(
            f"{path}: declares {leads} leads of up to {max(counts, default=0):g} samples, "
            f"expected at most {_MOST_LEADS} and what {len(content)} bytes can hold"
        )


def _scp_sections(content: bytes) -> dict[int, bytes]:
    """Return sections 3 to 5 (leads and beats), those that the table at the beginning points to."""
    sections = {}
    end = min(6 + int.from_bytes(content[10:14], "little"), len(content))
    for at in range(22, end - 9, 10):
        number, length, index = (
            int.from_bytes(content[at + i : at + j], "little") for i, j in ((0, 2), (2, 6), (6, 10))
        )
        if 3 <= number <= 5 and length:
            sections[number] = content[index + 15 : index - 1 + length]
    return sections


def _number(path: str, what: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ECGReadError(f"{path}: found the {what} {text[:40]!r}, expected a number")
    return number
