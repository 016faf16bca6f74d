"""
DICOM waveforms (12-lead, general and ambulatory ECG), decoded from what pydicom parses.

Only the elements in `_ELEMENTS` are parsed: names, identifiers, birth dates, addresses and free text stay unread.
Attributes follow DICOM PS3.3, C.10.9 (Waveform Module).
"""

import io
import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS, canonical_lead_name
from .channels import Channels, Fault
from .record import ECGReadError, read_whole_file
from .scp import LEADS

if TYPE_CHECKING:
    from pydicom import Dataset

_ELEMENTS = ["SOPClassUID", "AcquisitionDateTime", "PatientAge", "PatientSex", "WaveformSequence"]

# pydicom gets the file's bytes, so that a damaged length cannot make it ask for more memory than the file has.
_LARGEST_FILE = 1 << 30

_BIG_ENDIAN = "1.2.840.10008.1.2.2"
# Others compress images, which are no waveforms, or the whole file, which could then unpack to any size.
_TRANSFER_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN)
_META_STARTS = 132  # after the preamble and the mark "DICM"

# Waveform Sample Interpretation: the type in the file, the type in the record. The companded ones (MB, AB) are sound.
_SAMPLE_TYPES = {
    ("SB", 8): ("i1", np.int16),
    ("UB", 8): ("u1", np.int16),
    ("SS", 16): ("i2", np.int16),
    ("US", 16): ("u2", np.int32),
    ("SL", 32): ("i4", np.int32),
}

_SHORTEST_PADDING = 10  # samples; fewer equal samples at an end occur in sound recordings
_MISSING = -(2**31)
# ISO/IEEE 11073-10101 (MDC) and SCP-ECG (EN 1064) number the leads alike: "2:61" and "5.6.3-9-61" are lead III.
_LEAD_CODE = re.compile(r"(?:2:|5\.6\.3-9-)(\d{1,3})", re.ASCII)
# Of no lead in particular, or of a standard lead that was computed from others: the channel's words decide.
_OPEN_LEAD_NUMBERS = {0, *range(31, 39), *range(111, 115)}
# What may stand behind the name of a standard lead. "Lead I (Frank)" is another lead than I.
_EPONYM = re.compile(r"\s*\((?:Einthoven|Goldberger|Wilson)\)\s*$", re.IGNORECASE)


def read_dicom(path: str) -> Channels:
    """
    Read the ECG of a DICOM file.

    Of its multiplex groups the original recording is read, never a derived one such as a median beat: the one ORIGINAL
    group that has both the longest duration and the most channels.

    Raises:
        ECGReadError: there is no such group, or something in it is damaged, truncated or uncalibrated.
    """
    content = read_whole_file(path, _LARGEST_FILE, "DICOM waveform")

    import pydicom

    syntax, data_start = _transfer_syntax(content)
    if syntax not in _TRANSFER_SYNTAXES:
        name = pydicom.uid.UID(syntax).name or "none"
        raise ECGReadError(
            f"{path}: found the transfer syntax {name}, expected an uncompressed one, as waveforms have",
            "unsupported format",
        )
    # The data get a new header with the accepted transfer syntax, so that pydicom cannot find and unpack another.
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value
    accepted = io.BytesIO(b"".join((bytes(128), b"DICM", meta, memoryview(content)[data_start:])))
    try:
        return _found(path, syntax, pydicom.dcmread(accepted, specific_tags=_ELEMENTS))
    except ECGReadError:
        raise
    except Exception as error:  # pydicom parses lazily and meets damage with errors of many types
        raise ECGReadError(f"{path}: damaged DICOM file ({type(error).__name__}: {error})") from error


def _found(path: str, syntax: str, dataset: "Dataset") -> Channels:
    if not dataset.get("WaveformSequence"):
        kind = getattr(dataset.get("SOPClassUID"), "name", "unknown kind")
        raise ECGReadError(f"{path}: a DICOM file without a waveform ({kind})", "no waveform")
    group = _original_group(path, dataset.WaveformSequence)
    names, gain, baseline, units, faults = _channels(path, group)
    samples, padding, stored = _samples(path, group, byte_order=">" if syntax == _BIG_ENDIAN else "<")
    samples, missing_value = _without_padding(samples, padding, stored)
    return Channels(
        path=path,
        names=names,
        samples=samples,
        gain=gain,
        baseline=baseline,
        units=units,
        rates=float(group.SamplingFrequency),
        faults=faults if any(faults) else (),
        missing_value=missing_value,
        age=_age(str(dataset.get("PatientAge") or "")),
        sex=sex if (sex := dataset.get("PatientSex")) in ("M", "F") else None,
        time=_time(str(dataset.get("AcquisitionDateTime") or "")),
    )


def _transfer_syntax(content: bytes) -> tuple[str, int]:
    """
    Return the UID of the file's encoding ("" if there is none), and the offset of the data.

    The elements of group 2, at the beginning, are always little endian with explicit types.
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


def _original_group(path: str, groups: "Sequence[Dataset]") -> "Dataset":
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
    found = "; ".join(
        f"{group.get('MultiplexGroupLabel') or 'no label'}: {group.get('WaveformOriginality')}, "
        f"{group.get('NumberOfWaveformChannels')} channels of {group.get('NumberOfWaveformSamples')} samples"
        for group in groups
    )
    raise ECGReadError(
        f"{path}: expected one ORIGINAL group with the most leads and the longest duration, found {found}"
    )


def _seconds(group: "Dataset") -> float:
    return group.NumberOfWaveformSamples / float(group.SamplingFrequency)


def _channels(path: str, group: "Dataset") -> tuple[list[str], list[float], list[float], list[str], list[Fault | None]]:
    """Return name, gain, baseline, unit and fault of each channel."""
    channels = group.get("ChannelDefinitionSequence") or []
    if len(channels) != group.NumberOfWaveformChannels:
        raise ECGReadError(
            f"{path}: {group.NumberOfWaveformChannels} channels declared, {len(channels)} channels defined"
        )
    names: list[str] = []
    gains: list[float] = []
    baselines: list[float] = []
    units: list[str] = []
    faults: list[Fault | None] = []
    for number, channel in enumerate(channels, start=1):
        names.append(_lead_name(path, number, channel))
        sensitivity, unit = channel.get("ChannelSensitivity"), channel.get("ChannelSensitivityUnitsSequence")
        # One stored step is sensitivity times correction, and 0 stands for the baseline, in physical units.
        step = float(sensitivity or 0) * _number(channel, "ChannelSensitivityCorrectionFactor", 1.0)
        fault = _skew_fault(channel, float(group.SamplingFrequency))
        if sensitivity is None or not unit:
            fault = "gain", "no sensitivity; an uncalibrated signal has no voltage"
        elif not math.isfinite(step) or step == 0:
            fault = "gain", f"sensitivity times correction is {step:g}, which is no voltage"
        usable = fault is None
        gains.append(1 / step if usable else 1.0)
        baselines.append(0.0 - _number(channel, "ChannelBaseline", 0.0) / step if usable else 0.0)
        units.append(str(unit[0].CodeValue) if unit else "")
        faults.append(fault)
    return names, gains, baselines, units, faults


def _number(dataset: "Dataset", keyword: str, default: float) -> float:
    value = dataset.get(keyword)
    return default if value is None else float(value)


def _skew_fault(channel: "Dataset", rate: float) -> Fault | None:
    # A converter that samples its channels in turn skews them by a part of a sample, which is not corrected.
    skew = _number(channel, "ChannelSampleSkew", 0.0) + _number(channel, "ChannelTimeSkew", 0.0) * rate
    return None if abs(skew) < 1 else ("unsupported format", f"skewed by {skew:g} samples, which is not supported")


def _lead_name(path: str, number: int, channel: "Dataset") -> str:
    """Return the lead on which a channel's code, meaning and label agree, or its own words if none is a known lead."""
    source = (channel.get("ChannelSourceSequence") or [{}])[0]
    code, meaning = str(source.get("CodeValue") or ""), str(source.get("CodeMeaning") or "")
    words = [text for text in (_EPONYM.sub("", meaning).strip(), str(channel.get("ChannelLabel") or ""), code) if text]
    known = {}
    coded = _LEAD_CODE.fullmatch(code)
    lead_number = int(coded[1]) if coded else 0
    if lead_number in LEADS:
        known[LEADS[lead_number]] = code
    for text in words:
        try:
            known[canonical_lead_name(text)] = text
        except ValueError:
            continue
    if lead_number not in {*LEADS, *_OPEN_LEAD_NUMBERS} and known.keys() & set(STANDARD_LEADS):
        known[f"number {lead_number} of EN 1064"] = code
    if len(known) > 1:
        raise ECGReadError(
            f"{path}: channel {number} is lead {' and lead '.join(known)} at once, by {words}", "lead names"
        )
    if not known and not words:
        raise ECGReadError(
            f"{path}: channel {number} has no lead name; a position does not identify a lead", "lead names"
        )
    return next(iter(known), words[0] if words else "")


def _samples(path: str, group: "Dataset", byte_order: str) -> tuple[np.ndarray, int | None, np.dtype]:
    """Return (leads, samples) in the record's type, the padding value that the file declares, and the stored type."""
    kind = (group.get("WaveformSampleInterpretation"), group.get("WaveformBitsAllocated"))
    if kind not in _SAMPLE_TYPES:
        raise ECGReadError(f"{path}: found samples of kind {kind}, expected one of {list(_SAMPLE_TYPES)}")
    code, dtype = _SAMPLE_TYPES[kind]
    stored = np.dtype(byte_order + code)
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
    return np.ascontiguousarray(samples.T, dtype=dtype), padding, stored


def _without_padding(samples: np.ndarray, padding: int | None, stored: np.dtype) -> tuple[np.ndarray, int | None]:
    """
    Return the samples, and the stored value of those that are missing.

    Padding fills what was not recorded: all channels at once, or the end or beginning of one. A sample in the middle
    that has the padding value is a sample: many files declare 0, which every lead crosses.
    """
    if padding is None:
        return samples, None
    at_padding = samples == padding
    if not at_padding.any():
        return samples, None
    if padding in (np.iinfo(stored).min, np.iinfo(stored).max):  # no voltage that a recorder gives
        return samples, padding
    everywhere, throughout = at_padding.all(axis=0), at_padding.all(axis=1)
    missing = np.repeat(everywhere[None], len(samples), axis=0)
    # Runs at an end that are too long to be a crossing of the padding value.
    for row, own in enumerate(at_padding):
        from_start, from_end = (len(own),) * 2 if throughout[row] else (int(own.argmin()), int(own[::-1].argmin()))
        if from_start >= _SHORTEST_PADDING:
            missing[row, :from_start] = True
        if from_end >= _SHORTEST_PADDING:
            missing[row, -from_end:] = True
    # A lead that rests at the padding value throughout is a dead lead like any other; only 0 can be one.
    if padding == 0:
        missing &= ~throughout[:, None] | everywhere[None]
    if not missing.any():
        return samples, None
    if (missing == at_padding).all():
        return samples, padding
    marked = samples.astype(np.int32)
    marked[missing] = _MISSING
    return marked, _MISSING


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
