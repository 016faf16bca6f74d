"""What is looked at in a device's file before `ecgdatakit` may parse it, so that no file can make it take all memory.

ecgdatakit's XML parsers refuse entities themselves; that, depth and size are made sure of here, whatever its version.
"""

import base64
import binascii
import math
from xml.parsers import expat

from .errors import ECGReadError

_DEEPEST, _MOST_ELEMENTS = 64, 500_000
_MOST_LEADS = 64
_MOST_SAMPLES = 1 << 21  # of all leads: twelve at 500 Hz for six minutes; resting ECGs take ten seconds
_LZW_BITS = 10  # of a code in Philips's XLI compression


def check_xml(path: str, content: bytes) -> dict[str, list[tuple[dict, str]]]:
    """Refuse XML that is malformed, nested too deeply or declares entities; return elements that tell the size.

    A document type is allowed, since GE MUSE writes one, but nothing that it refers to is ever opened.
    """
    try:
        return _walk(path, content, None)
    except expat.ExpatError as error:
        first = error
    try:  # files that are Latin-1 without saying so
        return _walk(path, content, "iso-8859-1")
    except expat.ExpatError:
        raise ECGReadError(f"{path}: malformed XML ({first})") from first


# Elements whose attributes and text are wanted, to be compared with what the parser makes of them.
_WANTED = (
    *("parsedwaveforms", "numberchannelsallocated", "numberchannelsvalid", "numberofleads", "samplingrate"),
    *("SampleBase", "SampleExponent"),
)


def _walk(path: str, content: bytes, encoding: str | None) -> dict[str, list[tuple[dict, str]]]:
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    open_elements: list[str] = []
    found: dict[str, list[tuple[dict, list[str]]]] = {}
    count = 0

    def start(tag, attributes):
        nonlocal count
        count += 1
        tag = tag.rpartition(":")[2]
        open_elements.append(tag)
        if len(open_elements) > _DEEPEST or count > _MOST_ELEMENTS:
            raise ECGReadError(f"{path}: XML of more than {_DEEPEST} levels or {_MOST_ELEMENTS} elements")
        if tag in _WANTED:
            found.setdefault(tag, []).append((attributes, []))

    def end(_):
        open_elements.pop()

    def text(data):
        if open_elements and open_elements[-1] in _WANTED:
            found[open_elements[-1]][-1][1].append(data)

    def entity(*_):
        raise ECGReadError(f"{path}: declares XML entities, which an ECG does not need and may do harm")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.EntityDeclHandler = parser.UnparsedEntityDeclHandler = entity
    try:
        parser.Parse(content, True)
    except (LookupError, ValueError) as error:  # an unknown encoding, or one of several bytes
        if isinstance(error, ECGReadError):
            raise
        raise ECGReadError(f"{path}: XML in an encoding that cannot be read ({error})") from error
    return {tag: [(attributes, "".join(parts)) for attributes, parts in items] for tag, items in found.items()}


def check_whole_rates(path: str, elements: dict):
    """Refuse a sampling rate that the parsers for MUSE and Sierra would silently round to a whole number."""
    rates = [text for _, text in elements.get("SampleBase", []) + elements.get("samplingrate", [])]
    rates += [attributes.get("samplespersecond", "") for attributes, _ in elements.get("parsedwaveforms", [])]
    for rate in filter(None, map(str.strip, rates)):
        if not _number(path, "sampling rate", rate).is_integer():
            raise ECGReadError(f"{path}: found a sampling rate of {rate} Hz, expected a whole number in this format")
    for _, exponent in elements.get("SampleExponent", []):
        if exponent.strip() and not 0 <= _number(path, "SampleExponent", exponent) <= 5:
            raise ECGReadError(f"{path}: found SampleExponent {exponent.strip()!r}, expected 0 to 5")


def check_sierra(path: str, elements: dict):
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
        return
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ECGReadError(f"{path}: parsedwaveforms is not Base64 ({error})") from error
    if _is_xli(attributes):
        if len(content) > 2 * _MOST_SAMPLES:
            raise ECGReadError(f"{path}: {len(content)} compressed bytes, expected at most {2 * _MOST_SAMPLES}")
        _check_xli(path, content)


def _check_xli(path: str, content: bytes):
    left = 2 * _MOST_SAMPLES
    for chunk in _xli_chunks(content):
        left -= _lzw_length(chunk, left)
        if left < 0:
            raise ECGReadError(f"{path}: the compressed samples unpack to more than {_MOST_SAMPLES}")


def _xli_chunks(content: bytes):
    """The compressed leads, each behind eight bytes of which four are its length."""
    at = 0
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "little", signed=True)
        if size <= 0:
            return  # for the parser to refuse
        yield content[at + 8 : at + 8 + size]
        at += 8 + size


def check_sierra_whole(path: str, elements: dict, leads: int, samples: int):
    """Refuse a Sierra file of which the parser has left something out: it takes what is declared, and no more."""
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


def _is_xli(attributes: dict) -> bool:
    return (attributes.get("compression") or attributes.get("compressmethod") or "").upper() == "XLI"


def _lzw_length(chunk: bytes, most: int) -> int:
    """How many bytes an LZW stream unpacks to, found from the codes alone, or more than `most`."""
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


def check_scp(path: str, content: bytes):
    """Refuse an SCP-ECG file that declares more samples than its bytes can hold, one bit a sample at the least."""
    sections = _scp_sections(content)
    if 3 not in sections:
        return  # for the parser to refuse
    body = sections[3]
    leads = body[0] if body else 0
    counts = []
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
    """Content of the sections that the table at the beginning points to, as far as they are there."""
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
