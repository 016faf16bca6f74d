"""
XML of electrocardiographs: the one guard for XML files, and the formats that are read here from their elements.

Those are Philips Sierra XML, GE CardioSoft XML and Schiller XML. GE MUSE XML, HL7 aECG and Mortara EL250 are parsed by
`ecgdatakit` (`devices`), after the same guard. Identities in a file are never looked at.
"""

import base64
import binascii
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from datetime import datetime
from xml.parsers import expat

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS
from .channels import Channels
from .record import ECGReadError, read_whole_file, standard_or_own_name

LARGEST_XML = 1 << 25  # bytes
MOST_LEADS = 64
MOST_SAMPLES = 1 << 21  # of all leads: twelve at 500 Hz for six minutes; a resting ECG takes ten seconds
_DEEPEST, _MOST_ELEMENTS = 64, 500_000
_OLDEST = 150

# Elements that hold numbers in text, and attributes that hold one. Python also reads 1_000 and digits of other scripts
# as numbers, and ecgdatakit leaves the reading to Python; no device writes them.
_NUMBERS = {
    *("digits", "SampleBase", "SampleExponent", "LeadAmplitudeUnitsPerBit", "LeadSampleCountTotal", "LeadSampleSize"),
    *("LeadByteCountTotal", "FirstSampleBaseline", "LeadTimeOffset", "LeadOffsetFirstSample", "samplingrate"),
    *("resolution", "signalresolution", "signaloffset", "numberchannelsallocated", "numberchannelsvalid"),
    *("numberofleads", "SampleRate", "ChannelSampleCountTotal", "Resolution", "NumberOfLeads", "samplecount"),
    *("unitperbit", "exponent"),
}
_NUMBER_ATTRIBUTES = {
    **dict.fromkeys(("scale", "origin", "increment"), ("value",)),
    "parsedwaveforms": ("numberofleads", "durationperchannel", "samplespersecond", "resolution", "signaloffset"),
    "CHANNEL": ("SAMPLE_FREQ", "UNITS_PER_MV", "DURATION", "OFFSET", "BITS"),
}
_NOT_PLAIN = re.compile(r"[^-+0-9.eE \t\r\n]")


def parse_xml(path: str) -> ElementTree.Element:
    """
    Return the root of an XML file, its elements without their namespaces.

    A document type is allowed, since GE MUSE writes one, but nothing that it refers to is ever opened.

    Raises:
        ECGReadError: the file is too large, malformed, nested too deeply, declares entities, or a number in it that
            decides on a sample is not plain.
    """
    content = read_whole_file(path, LARGEST_XML, "XML")
    try:
        return _walk(path, content, None)
    except expat.ExpatError as error:
        first = error
    try:  # files in Latin-1 that do not declare it
        return _walk(path, content, "iso-8859-1")
    except expat.ExpatError:
        raise ECGReadError(f"{path}: malformed XML ({first})") from first


def _walk(path: str, content: bytes, encoding: str | None) -> ElementTree.Element:
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    builder = ElementTree.TreeBuilder()
    open_elements: list[str] = []
    count = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        tag = tag.rpartition(":")[2]
        open_elements.append(tag)
        if len(open_elements) > _DEEPEST or count > _MOST_ELEMENTS:
            raise ECGReadError(f"{path}: found XML of more than {_DEEPEST} levels or {_MOST_ELEMENTS} elements")
        for name in _NUMBER_ATTRIBUTES.get(tag, ()):
            _check_plain(path, tag if name == "value" else name, attributes.get(name, ""))
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        builder.end(open_elements.pop())

    def text(data: str) -> None:
        if open_elements and open_elements[-1] in _NUMBERS:
            _check_plain(path, open_elements[-1], data)
        builder.data(data)

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
    return builder.close()


def _check_plain(path: str, name: str, text: str) -> None:
    found = _NOT_PLAIN.search(text)
    if found:
        raise ECGReadError(f"{path}: found {found[0]!r} in a number of {name}, expected plain decimal numbers")


def number_in(path: str, what: str, text: str | None) -> float:
    """Return the finite number in a text. `ECGReadError` if it is none."""
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ECGReadError(f"{path}: found the {what} {(text or '')[:40]!r}, expected a number")
    return number


def _text(element: ElementTree.Element | None, path: str = ".") -> str:
    found = None if element is None else element.find(path)
    return "" if found is None else (found.text or "").strip()


def _count(path: str, what: str, text: str, most: int) -> int:
    number = number_in(path, what, text)
    if not number.is_integer() or not 1 <= number <= most:
        raise ECGReadError(f"{path}: found {text[:20]} {what}, expected 1 to {most}")
    return int(number)


def _whole_numbers(path: str, lead: str, text: str, separator: str | None) -> np.ndarray:
    """Return the samples in a text, as int16 or int32."""
    try:
        values = np.array(text.split(separator), dtype=np.float64)
    except ValueError as error:
        raise ECGReadError(f"{path}: lead {lead}: expected whole numbers ({str(error)[:80]})") from error
    if _NOT_PLAIN.search(text.replace(separator or " ", " ")) or (values != np.floor(values)).any():
        raise ECGReadError(f"{path}: lead {lead}: expected whole numbers")
    return _smallest_type(path, values)


def _smallest_type(path: str, values: np.ndarray) -> np.ndarray:
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype)
    raise ECGReadError(f"{path}: found samples of more than 32 bits, expected those of an ECG")


# Philips Sierra XML


def read_sierra(path: str) -> Channels:
    """Read the leads that a Philips Sierra XML file declares; spare channels behind them are never looked at."""
    root = parse_xml(path)
    kind, version = _text(root, "documentinfo/documenttype"), _text(root, "documentinfo/documentversion")
    if kind not in ("SierraECG", "PhilipsECG") or not re.fullmatch(r"1\.0[34](\.\d+)*", version, re.ASCII):
        raise ECGReadError(f"{path}: found {kind[:40]!r} of version {version[:20]!r}, expected Sierra XML 1.03 or 1.04")
    waveforms = list(root.iter("parsedwaveforms"))
    if len(waveforms) != 1:
        raise ECGReadError(f"{path}: found {len(waveforms)} elements parsedwaveforms, expected one")
    signal = waveforms[0]
    characteristics = root.find("dataacquisition/signalcharacteristics")

    def stated(attribute: str, *elements: str) -> str:
        found = (_text(characteristics, name) for name in elements or (attribute,))
        return signal.get(attribute, "").strip() or next(filter(None, found), "")

    names, warnings = _sierra_leads(path, signal, characteristics)
    rate = number_in(path, "sampling rate", stated("samplespersecond", "samplingrate"))
    duration = number_in(path, "durationperchannel", signal.get("durationperchannel"))
    if not 0 < duration * rate / 1000 <= MOST_SAMPLES or rate <= 0:
        raise ECGReadError(f"{path}: found {duration:g} ms at {rate:g} Hz, expected at most {MOST_SAMPLES} samples")
    length = round(duration * rate / 1000)
    step = number_in(path, "signal resolution", stated("resolution", "resolution", "signalresolution"))
    if step == 0:
        raise ECGReadError(f"{path}: found a resolution of 0 uV, which gives no voltage")
    zero = stated("signaloffset")
    samples = _sierra_samples(path, signal, names, length, stated("signalsigned"))
    count = len(names)
    acquired = root.find("dataacquisition")
    date = (acquired.get("date", ""), acquired.get("time", "")) if acquired is not None else ("", "")
    return Channels(
        path=path,
        names=names,
        samples=samples,
        gain=[1 / step] * count,
        baseline=[number_in(path, "signaloffset", zero) if zero else 0.0] * count,
        units=["uV"] * count,
        rates=rate,
        warnings=warnings,
        age=_age(_text(root, "patient/generalpatientdata/age/years")),
        sex=_sex(_text(root, "patient/generalpatientdata/sex")),
        time=_time(" ".join(date), "%Y-%m-%d %H:%M:%S"),
    )


def _sierra_leads(
    path: str, signal: ElementTree.Element, characteristics: ElementTree.Element | None
) -> tuple[list[str], list[str]]:
    """Return the leads that are declared, and warnings."""
    labels = signal.get("leadlabels", "").split()
    declared = signal.get("numberofleads", "").strip()
    if labels:
        count = _count(path, "leads", declared, MOST_LEADS) if declared else len(labels)
        if count > len(labels):
            raise ECGReadError(f"{path}: found labels of {len(labels)} leads, expected {count} by numberofleads")
        named = f"leadlabels has {len(labels)} leads, of which numberofleads declares the first {count}"
        return labels[:count], [named] if count < len(labels) else []
    allocated = declared or _text(characteristics, "numberchannelsallocated")
    count = _count(path, "leads", allocated or _text(characteristics, "numberchannelsvalid"), MOST_LEADS)
    kinds = {_text(characteristics, "acquisitiontype").upper(), _text(characteristics, "leadset").upper()}
    if not kinds & {"STD-12", "10-WIRE"} or count < len(STANDARD_LEADS):
        raise ECGReadError(f"{path}: found {count} leads without labels, expected leadlabels or the lead set STD-12")
    return [*STANDARD_LEADS, *[""] * (count - len(STANDARD_LEADS))], []


def _sierra_samples(
    path: str, signal: ElementTree.Element, names: Sequence[str], length: int, is_signed: str
) -> np.ndarray:
    """Return (leads, samples) of the leads that are declared."""
    text, count = signal.text or "", len(names)
    compression = (signal.get("compression") or signal.get("compressmethod") or "").strip().upper()
    if signal.get("compressflag", "").strip().lower() in ("false", "no") or compression in ("NONE", "UNCOMPRESSED"):
        compression = ""
    if compression not in ("", "XLI"):
        raise ECGReadError(f"{path}: found the compression {compression[:20]}, expected XLI or none")
    if signal.get("dataencoding") == "Plain" and not compression:
        values = _whole_numbers(path, "of parsedwaveforms", text, None)
    elif signal.get("dataencoding") == "Base64":
        try:
            content = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ECGReadError(f"{path}: parsedwaveforms is not Base64 ({error})") from error
        if compression:
            return _xli_leads(path, content, names, length)
        if len(content) % 2:
            raise ECGReadError(f"{path}: parsedwaveforms holds {len(content)} bytes, expected two for each sample")
        values = np.frombuffer(content, "<u2" if is_signed.lower() in ("false", "no", "f", "0") else "<i2")
    else:
        raise ECGReadError(f"{path}: found the encoding {signal.get('dataencoding')!r}, expected Base64 or Plain")
    # Spare channels are whole ones.
    if len(values) < count * length or len(values) % length:
        raise ECGReadError(
            f"{path}: parsedwaveforms holds {len(values)} samples, expected {count * length} ({count} x {length})"
        )
    leads = values[: count * length].reshape(count, length)
    return leads.astype(np.int32 if leads.dtype.kind == "u" or leads.dtype.itemsize > 2 else np.int16)


def _xli_leads(path: str, content: bytes, names: Sequence[str], length: int) -> np.ndarray:
    """
    Return the leads of Philips's XLI compression: a chunk a lead, of second differences in LZW codes.

    The third to sixth lead are what the first two do not explain of them, so they must be the limb leads.
    """
    limbs = STANDARD_LEADS[:6]
    if tuple(map(standard_or_own_name, names[:6])) != limbs:
        raise ECGReadError(
            f"{path}: found XLI compression of the leads {', '.join(names[:6])}, expected {', '.join(limbs)} first",
            "lead names",
        )
    rows: list[np.ndarray] = []
    for chunk, first in _xli_chunks(content):
        name = names[len(rows)]
        unpacked = unpack_lzw(chunk, 2 * length + 2)
        if len(unpacked) // 2 != length:
            found = f"more than {length}" if len(unpacked) > 2 * length + 1 else str(len(unpacked) // 2)
            raise ECGReadError(f"{path}: lead {name}: found {found} compressed samples, expected {length}")
        high, low = np.frombuffer(unpacked[: 2 * length], np.uint8).reshape(2, length).astype(np.uint16)
        codes = (high << 8 | low).view(np.int16).astype(np.int64)
        # The first two codes are samples; each later one is the bend at the sample before it, plus 64.
        bends = np.concatenate([[first], codes[2:-1] - 64])
        slopes = codes[1] - codes[0] - np.concatenate([[0], np.cumsum(bends)])[: length - 1]
        rows.append(codes[0] + np.concatenate([[0], np.cumsum(slopes)]))
        if len(rows) == len(names):
            break
    else:
        raise ECGReadError(f"{path}: found {len(rows)} compressed leads, expected {len(names)}")
    one, two = rows[0], rows[1]
    rows[2] = two - one - rows[2]
    rows[3] = -rows[3] - (one + two) // 2
    rows[4] = (one - rows[2]) // 2 - rows[4]
    rows[5] = (two + rows[2]) // 2 - rows[5]
    for name, row in zip(names, rows, strict=True):
        if not -(2**15) <= row.min() <= row.max() < 2**15:
            raise ECGReadError(f"{path}: lead {name}: compressed samples of more than 16 bits, a damaged file")
    return np.stack(rows).astype(np.int16)


def _xli_chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the compressed leads and what each begins with, until one is not complete."""
    at = 0
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "little", signed=True)
        if not 0 < size <= len(content) - at - 8:
            return
        yield content[at + 8 : at + 8 + size], int.from_bytes(content[at + 6 : at + 8], "little", signed=True)
        at += 8 + size


_LZW_BITS = 10


def unpack_lzw(packed: bytes, most: int) -> bytes:
    """Unpack LZW codes of 10 bits, and stop once there are `most` bytes or more."""
    digits = format(int.from_bytes(packed, "big"), f"0{8 * len(packed)}b") if packed else ""
    entries = {code: bytes([code]) for code in range(256)}
    last = (1 << _LZW_BITS) - 2
    unpacked, previous, following = bytearray(), b"", 256
    for at in range(0, len(digits) - _LZW_BITS + 1, _LZW_BITS):
        code = int(digits[at : at + _LZW_BITS], 2)
        if code > last or len(unpacked) >= most or (code not in entries and not previous):
            break
        entry = entries.setdefault(code, previous + previous[:1])
        if previous and following <= last:
            entries[following] = previous + entry[:1]
            following += 1
        previous = entry
        unpacked += entry
    return bytes(unpacked)


# GE CardioSoft XML


def read_cardiosoft(path: str) -> Channels:
    """Read the rhythm of a GE CardioSoft XML file (as in UK Biobank), never its median beats."""
    root = parse_xml(path)
    strips = root.findall("StripData")
    if len(strips) != 1 or not strips[0].findall("WaveformData"):
        raise ECGReadError(
            f"{path}: found {len(strips)} elements StripData with leads, expected one of a resting ECG; stress tests "
            "and files with only median beats are not supported"
        )
    strip = strips[0]
    resolution, rate = strip.find("Resolution"), strip.find("SampleRate")
    if resolution is None or resolution.get("units") != "uVperLsb" or rate is None or rate.get("units") != "Hz":
        raise ECGReadError(f"{path}: expected a Resolution in uVperLsb and a SampleRate in Hz in StripData")
    length = _count(path, "samples", _text(strip, "ChannelSampleCountTotal"), MOST_SAMPLES)
    leads = strip.findall("WaveformData")
    declared = _text(strip, "NumberOfLeads")
    if declared and number_in(path, "NumberOfLeads", declared) != len(leads):
        raise ECGReadError(f"{path}: found {len(leads)} leads, expected {declared} by NumberOfLeads")
    step = number_in(path, "Resolution", _text(resolution))
    observed, age = root.find("ObservationDateTime"), root.find("PatientInfo/Age")
    parts = [_text(observed, name).zfill(2) for name in ("Year", "Month", "Day", "Hour", "Minute", "Second")]
    return _text_channels(
        path,
        [lead.get("lead", "") for lead in leads],
        [(lead.text or "").strip().strip(",") for lead in leads],
        [length] * len(leads),
        step,
        "uV",
        number_in(path, "SampleRate", _text(rate)),
        age=None if age is None or age.get("units", "years").lower() not in ("years", "year") else _age(_text(age)),
        sex=_sex(_text(root, "PatientInfo/Gender")),
        time=_time(" ".join(parts), "%Y %m %d %H %M %S"),
    )


# Schiller XML


def read_schiller(path: str) -> Channels:
    """Read the rhythm (ECG_RHYTHMS) of a Schiller XML file, never its average beats."""
    root = parse_xml(path)
    found = [wave for wave in root.iter("wavedata") if _text(wave, "type") == "ECG_RHYTHMS"]
    if len(found) != 1:
        kinds = sorted({_text(wave, "type")[:30] for wave in root.iter("wavedata")})
        raise ECGReadError(f"{path}: found {len(found)} recordings of type ECG_RHYTHMS, expected one (types: {kinds})")
    wave = found[0]
    if _text(wave, "resolution/samplerate/exponent") not in ("", "1"):
        raise ECGReadError(f"{path}: found a sampling rate with another exponent than 1, which is not supported")
    units = {"UV": "uV", "MV": "mV", "NV": "nV"}.get(_text(wave, "resolution/yres/units").upper())
    if units is None:
        raise ECGReadError(f"{path}: found the unit {_text(wave, 'resolution/yres/units')[:20]!r}, expected UV or MV")
    leads = wave.findall("channel")
    for lead in leads:
        if _text(lead, "datastype") != "COMMASEPARATE":
            kind = _text(lead, "datastype")[:30]
            raise ECGReadError(
                f"{path}: lead {_text(lead, 'name')}: found data of type {kind!r}, expected COMMASEPARATE"
            )
    examined = root.find("examdescript/startdatetime")
    return _text_channels(
        path,
        [_text(lead, "name") for lead in leads],
        [_text(lead, "data").strip(",") for lead in leads],
        [_count(path, "samples", _text(lead, "samplecount"), MOST_SAMPLES) for lead in leads],
        number_in(path, "unitperbit", _text(wave, "resolution/yres/unitperbit")),
        units,
        number_in(path, "sampling rate", _text(wave, "resolution/samplerate/value")),
        sex=_sex(_text(root, "patdata/gender")),
        time=_time(_text(examined, "date") + _text(examined, "time")[:6], "%Y%m%d%H%M%S"),
    )


def _text_channels(
    path: str,
    names: list[str],
    texts: list[str],
    lengths: list[int],
    step: float,
    units: str,
    rate: float,
    age: float | None = None,
    sex: str | None = None,
    time: datetime | None = None,
) -> Channels:
    """Return leads whose samples are numbers with commas between them; `lengths` is how many each declares."""
    if not 1 <= len(names) <= MOST_LEADS or sum(lengths) > MOST_SAMPLES:
        raise ECGReadError(
            f"{path}: found {len(names)} leads, expected 1 to {MOST_LEADS} of {MOST_SAMPLES} samples in all"
        )
    if step == 0:
        raise ECGReadError(f"{path}: found a resolution of 0, which gives no voltage")
    rows = []
    for name, text, length in zip(names, texts, lengths, strict=True):
        rows.append(_whole_numbers(path, name, text, ","))
        if len(rows[-1]) != length:
            raise ECGReadError(f"{path}: lead {name}: found {len(rows[-1])} samples, expected {length}")
    return Channels(
        path=path,
        names=names,
        samples=np.stack(rows) if len(set(lengths)) == 1 else rows,
        gain=[1 / step] * len(names),
        baseline=[0.0] * len(names),
        units=[units] * len(names),
        rates=rate,
        age=age,
        sex=sex,
        time=time,
    )


def _age(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,3}", text, re.ASCII) and int(text) <= _OLDEST else None


def _sex(text: str) -> str | None:
    return {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F"}.get(text.upper())


def _time(text: str, pattern: str) -> datetime | None:
    try:
        return datetime.strptime(text, pattern)
    except ValueError:
        return None


__all__ = [
    "LARGEST_XML",
    "MOST_LEADS",
    "MOST_SAMPLES",
    "number_in",
    "parse_xml",
    "read_cardiosoft",
    "read_schiller",
    "read_sierra",
    "unpack_lzw",
]
