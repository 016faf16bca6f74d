"""DICOM waveforms (12-lead, general and ambulatory ECG), decoded from what pydicom parses.

Only the elements listed in `_ELEMENTS` are parsed at all: names, identifiers, birth dates, addresses and free text stay
unread. Attributes follow DICOM PS3.3, C.10.9 (Waveform Module).
"""

import io
import math
import os
import re
from datetime import datetime

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS, canonical_lead_name
from .errors import ECGReadError, read_bytes, regular_file_size
from .record import ECGRecord

_ELEMENTS = ["SOPClassUID", "AcquisitionDateTime", "PatientAge", "PatientSex", "WaveformSequence"]

# pydicom is given the file's bytes, so that a damaged length cannot make it ask for more memory than the file has.
_LARGEST_FILE = 1 << 30

_BIG_ENDIAN = "1.2.840.10008.1.2.2"
# Others compress images, which are no waveforms, or the whole file, which could then unpack to any size.
_TRANSFER_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN)
_META_STARTS = 132  # behind the preamble and the mark "DICM"

# Waveform Sample Interpretation: the type in the file, the type in the record. The companded ones (MB, AB) are sound.
_SAMPLE_TYPES = {
    ("SB", 8): ("i1", np.int16),
    ("UB", 8): ("u1", np.int16),
    ("SS", 16): ("i2", np.int16),
    ("US", 16): ("u2", np.int32),
    ("SL", 32): ("i4", np.int32),
}

# ISO/IEEE 11073-10101 (MDC) and SCP-ECG (EN 1064) number the leads alike: "2:61" and "5.6.3-9-61" are lead III.
_LEAD_NUMBERS = dict(zip((1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8), STANDARD_LEADS, strict=True))
_LEAD_CODE = re.compile(r"(?:2:|5\.6\.3-9-)(\d{1,3})", re.ASCII)


def read_dicom(path: str) -> ECGRecord:
    """Read the ECG of a DICOM file.

    Of its multiplex groups the original recording is taken, never a derived one such as a median beat: the one ORIGINAL
    group that has both the longest duration and the most channels. Raises `ECGReadError` if there is no such group, and
    for everything in it that is damaged, truncated or uncalibrated.
    """
    size = regular_file_size(path)
    if size > _LARGEST_FILE:
        raise ECGReadError(f"{path}: {size} bytes, expected at most {_LARGEST_FILE} in a DICOM waveform")
    content = read_bytes(path, size)

    import pydicom

    syntax, data_start = _transfer_syntax(content)
    if syntax not in _TRANSFER_SYNTAXES:
        name = pydicom.uid.UID(syntax).name or "none"
        raise ECGReadError(f"{path}: found the transfer syntax {name}, expected an uncompressed one, as waveforms have")
    # pydicom gets the data with the transfer syntax that was just admitted, so that it cannot find and unpack another.
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value
    admitted = io.BytesIO(b"".join((bytes(128), b"DICM", meta, memoryview(content)[data_start:])))
    try:
        return _record(path, syntax, pydicom.dcmread(admitted, specific_tags=_ELEMENTS))
    except ECGReadError:
        raise
    except Exception as error:  # pydicom parses lazily and meets damage with errors of many types
        raise ECGReadError(f"{path}: damaged DICOM file ({type(error).__name__}: {error})") from error


def _record(path: str, syntax: str, dataset) -> ECGRecord:
    if not dataset.get("WaveformSequence"):
        kind = getattr(dataset.get("SOPClassUID"), "name", "unknown kind")
        raise ECGReadError(f"{path}: a DICOM file without a waveform ({kind})")
    group = _original_group(path, dataset.WaveformSequence)
    names, gain, baseline, units = _channels(path, group)
    samples, missing_value = _samples(path, group, byte_order=">" if syntax == _BIG_ENDIAN else "<")
    return ECGRecord(
        recording_id=os.path.splitext(os.path.basename(path))[0],
        path=path,
        samples=samples,
        gain=gain,
        baseline=baseline,
        units=units,
        sampling_rate=float(group.SamplingFrequency),
        lead_names=names,
        missing_value=missing_value,
        age=_age(str(dataset.get("PatientAge") or "")),
        sex=sex if (sex := dataset.get("PatientSex")) in ("M", "F") else None,
        time=_time(str(dataset.get("AcquisitionDateTime") or "")),
    )


def _transfer_syntax(content: bytes) -> tuple[str, int]:
    """How the file is encoded ("" if it does not say), and where the data begin.

    The elements of group 2, at the beginning, are little endian with explicit types whatever the rest is.
    """
    syntax, at = "", _META_STARTS
    while content[at : at + 2] == b"\x02\x00":
        long = content[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        start = at + (12 if long else 8)
        end = start + int.from_bytes(content[at + 8 if long else at + 6 : start], "little")
        if content[at + 2 : at + 4] == b"\x10\x00":
            syntax = content[start:end].rstrip(b"\0 ").decode("ascii", "replace")
        at = end
    return syntax, at


def _original_group(path: str, groups):
    originals = [group for group in groups if group.get("WaveformOriginality") == "ORIGINAL"]
    for group in originals:
        for keyword in ("NumberOfWaveformChannels", "NumberOfWaveformSamples", "SamplingFrequency"):
            value = group.get(keyword)
            if value is None or not 0 < float(value) < math.inf:
                raise ECGReadError(f"{path}: found {keyword} {value}, expected a number above 0")
    if originals:
        longest = max(_seconds(group) for group in originals)
        most = max(group.NumberOfWaveformChannels for group in originals)
        best = [g for g in originals if _seconds(g) == longest and g.NumberOfWaveformChannels == most]
        if len(best) == 1:
            return best[0]
    there = "; ".join(
        f"{group.get('MultiplexGroupLabel') or 'no label'}: {group.get('WaveformOriginality')}, "
        f"{group.get('NumberOfWaveformChannels')} channels of {group.get('NumberOfWaveformSamples')} samples"
        for group in groups
    )
    raise ECGReadError(
        f"{path}: expected one ORIGINAL group with the most leads and the longest duration, found {there}"
    )


def _seconds(group) -> float:
    return group.NumberOfWaveformSamples / float(group.SamplingFrequency)


def _channels(path: str, group) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, tuple[str, ...]]:
    channels = group.get("ChannelDefinitionSequence") or []
    if len(channels) != group.NumberOfWaveformChannels:
        raise ECGReadError(
            f"{path}: {group.NumberOfWaveformChannels} channels declared, {len(channels)} channels defined"
        )
    names, gains, baselines, units = [], [], [], []
    for number, channel in enumerate(channels, start=1):
        name = _lead_name(path, number, channel)
        _check_skew(path, name, channel, float(group.SamplingFrequency))
        sensitivity, unit = channel.get("ChannelSensitivity"), channel.get("ChannelSensitivityUnitsSequence")
        if sensitivity is None or not unit:
            raise ECGReadError(f"{path}: lead {name} has no sensitivity; an uncalibrated signal has no voltage")
        # One stored step is sensitivity times correction, and 0 stands for the baseline, in physical units.
        step = float(sensitivity) * _number(channel, "ChannelSensitivityCorrectionFactor", 1.0)
        if not math.isfinite(step) or step == 0:
            raise ECGReadError(f"{path}: lead {name} has sensitivity times correction {step:g}, which is no voltage")
        names.append(name)
        gains.append(1 / step)
        baselines.append(0.0 - _number(channel, "ChannelBaseline", 0.0) / step)
        units.append(str(unit[0].CodeValue))
    return tuple(names), np.array(gains), np.array(baselines), tuple(units)


def _number(dataset, keyword: str, default: float) -> float:
    value = dataset.get(keyword)
    return default if value is None else float(value)


def _check_skew(path: str, name: str, channel, rate: float):
    # A converter that takes its channels in turn skews them by a part of a sample, which is left as it is.
    skew = _number(channel, "ChannelSampleSkew", 0.0) + _number(channel, "ChannelTimeSkew", 0.0) * rate
    if not abs(skew) < 1:
        raise ECGReadError(f"{path}: lead {name} is skewed by {skew:g} samples, which is not supported")


def _lead_name(path: str, number: int, channel) -> str:
    """The name on which code, meaning and label of a channel agree; if none is a known lead, the file's own words."""
    source = (channel.get("ChannelSourceSequence") or [{}])[0]
    code, meaning = str(source.get("CodeValue") or ""), str(source.get("CodeMeaning") or "")
    words = [text for text in (meaning.split("(")[0].strip(), str(channel.get("ChannelLabel") or ""), code) if text]
    known = {}
    coded = _LEAD_CODE.fullmatch(code)
    if coded and int(coded[1]) in _LEAD_NUMBERS:
        known[_LEAD_NUMBERS[int(coded[1])]] = code
    for text in words:
        try:
            known[canonical_lead_name(text)] = text
        except ValueError:
            continue
    if len(known) > 1:
        raise ECGReadError(f"{path}: channel {number} is lead {' and lead '.join(known)} at once, by {words}")
    if not known and not words:
        raise ECGReadError(f"{path}: channel {number} has no lead name; leads are never told by position")
    return next(iter(known), words[0] if words else "")


def _samples(path: str, group, byte_order: str) -> tuple[np.ndarray, int | None]:
    """(leads, samples) in the record's type, and the stored value of a missing sample."""
    kind = (group.get("WaveformSampleInterpretation"), group.get("WaveformBitsAllocated"))
    if kind not in _SAMPLE_TYPES:
        raise ECGReadError(f"{path}: found samples of kind {kind}, expected one of {list(_SAMPLE_TYPES)}")
    stored, dtype = _SAMPLE_TYPES[kind]
    stored = np.dtype(byte_order + stored)
    channels, count = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    content = group.get("WaveformData")
    content = content if isinstance(content, bytes) else b""
    expected = channels * count * stored.itemsize
    if len(content) not in (expected, expected + expected % 2):  # an element's length is always even
        raise ECGReadError(
            f"{path}: found {len(content)} bytes of waveform data, expected {expected} "
            f"({channels} channels of {count} samples of {stored.itemsize} bytes)"
        )
    samples = np.frombuffer(content, stored, count=channels * count).reshape(count, channels)
    padding = group.get("WaveformPaddingValue")
    if isinstance(padding, bytes):
        if len(padding) < stored.itemsize:
            raise ECGReadError(f"{path}: found a padding value of {len(padding)} bytes, expected {stored.itemsize}")
        padding = int(np.frombuffer(padding, stored, count=1)[0])
    return np.ascontiguousarray(samples.T, dtype=dtype), padding


def _age(text: str) -> float | None:
    found = re.fullmatch(r"(\d{3})([DWMY])", text, re.ASCII)
    return int(found[1]) / {"D": 365.25, "W": 365.25 / 7, "M": 12, "Y": 1}[found[2]] if found else None


def _time(text: str) -> datetime | None:
    # Local time of the device; the offset from UTC, where there is one, is not part of the record.
    found = re.match(r"\d{14}", text, re.ASCII)
    try:
        return datetime.strptime(found[0], "%Y%m%d%H%M%S") if found else None
    except ValueError:
        return None
