"""Recordings to the rows of a store's parts, and what is wrong with those that cannot be read."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..records.record import ECGRecord
from ..utils.resumable_parts import ItemWatch, PartAccount, Task
from .sources.base import LeftOut, Source
from .store import StoreWriter, row_from_record, store_schema

_FEWEST, _MOST, _PARTS = 64, 4096, 64


def part_size(num_recordings: int) -> int:
    """Recordings a part: about 64 parts, none of fewer than 64 or more than 4,096 (some 230 MB)."""
    return min(max(-(-num_recordings // _PARTS), _FEWEST), _MOST)


@dataclass(frozen=True)
class RecordingWriter:
    """
    Writes the rows of a part: a `PartWriter`.

    Args:
        source: Where the recordings are.
        index: The source's index; a part is a range of its rows.
        pseudonyms: Whether the index's ids are pseudonyms: then nothing written may name a file.
    """

    source: Source
    index: pa.Table
    pseudonyms: bool = False

    def __call__(self, task: Task, path: Path, watch: ItemWatch) -> PartAccount:
        source, codes, account = self.source, Counter[str](), PartAccount()

        def entries() -> Iterator[dict[str, Any]]:
            for entry in self.index.slice(task.start, task.stop - task.start).to_pylist():
                if entry["recording_id"] not in watch.deadly:
                    watch.begin(entry["recording_id"])
                    yield entry
                    continue
                file = None if self.pseudonyms else entry.get("path")
                reasons = ("the reader's process died on it", "the reader's process died")
                account.failures.append(asdict(LeftOut(entry["recording_id"], file, "read", *reasons)))

        with StoreWriter(path, store_schema(source.label_names)) as writer:
            for entry, record in source.read(entries()):
                row = record if isinstance(record, Exception) else row_of(source, record, entry, self.pseudonyms)
                if isinstance(row, Exception):
                    account.failures.append(asdict(left_out_of(entry, row, source, self.pseudonyms)))
                else:
                    writer.write(row)
                    codes.update(row["diagnoses"])
        account.rows, account.counts = writer.num_rows, dict(codes)
        return account


def row_of(
    source: Source, record: ECGRecord, entry: Mapping[str, Any], pseudonyms: bool = False
) -> dict[str, Any] | Exception:
    """The store's row of a recording and its row in the index, or what is wrong with them."""
    facts = {name: value for name, value in entry.items() if not name.startswith("_")}
    facts["source"] = facts.get("source") or source.name
    try:
        row = row_from_record(record, **(facts | source.labels(record, entry)))
    except (ValueError, OverflowError) as error:
        return error
    if pseudonyms:
        row["path"] = None
        row["patient_id"] = entry.get("patient_id")  # never what the file itself calls the patient
    return row


def left_out_of(entry: Mapping[str, Any], error: Exception, source: Source, pseudonyms: bool = False) -> LeftOut:
    """The account of a recording that could not be read."""
    path, root = entry.get("path"), getattr(source, "root", None)
    detail = str(error) or type(error).__name__
    if root is not None:
        # Reports travel with the data: the folder on this machine is nobody's business. Libraries may name it in full.
        for folder in dict.fromkeys((os.path.realpath(root), os.path.abspath(root), os.fspath(root))):
            detail = re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "", detail)
    if pseudonyms:
        return LeftOut(entry["recording_id"], None, "read", _kind_of(detail))
    return LeftOut(entry["recording_id"], path, "read", reason_of(detail, entry), detail)


# What may be said of a recording whose id is a pseudonym: these words and no others, since any part of a message may
# quote the name of a file, and a file may bear the name of a patient.
_KINDS = (
    *("no such signal file", "no such header", "no such file", "is empty", "truncated", "longer than its header"),
    *("checksum", "initial value", "unknown unit", "gain", "sampling rate", "number of samples", "lead name"),
    *("signal format", "cannot be decoded", "damaged", "infinite samples", "all zeros", "unknown format"),
    *("leads out of", "not supported", "not a WFDB header", "units", "header"),
)


def _kind_of(message: str) -> str:
    found = next((kind for kind in _KINDS if kind in message), None)
    return "cannot be read" if found is None else f"cannot be read: {found}"


def reason_of(message: str, entry: Mapping[str, Any]) -> str:
    """
    A message without what differs from recording to recording, so that a thousand of a kind become one line: names,
    quotations and what is in brackets go, numbers become N. What to pass stays.
    """
    # Readers' messages begin with the file, whose name may hold anything.
    first, colon, rest = message.partition(": ")
    if colon and ("/" in first or "." in first or first.startswith("recording ")):
        message = rest
    names = [str(entry[key]) for key in ("path", "recording_id") if entry.get(key)]
    names += [os.path.splitext(name)[0] for name in names] + [os.path.splitext(os.path.basename(n))[0] for n in names]
    for name in sorted({name for name in names if len(name) > 3}, key=len, reverse=True):
        message = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", message)
    message = re.sub(r"^\S*\s*:\s+", "", message.strip())
    message = re.sub(r"(?<!\w)'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "...", message)
    message = re.sub(r"\[Errno \d+\] ([^:()]*)(?:: \.\.\.)?", r"\1", message)
    message = re.sub(r"\bsignal \d+(?: \([^)]*\))?:", "a signal:", message)
    message = re.sub(r"\blead [^\s:,;]+(?=:| is | has | begins | occurs )", "a lead", message)
    message = re.sub(r", (?:in|found) the (?:record )?line .*|; (?!pass ).*|\[[^]]*\]", "", message, flags=re.DOTALL)
    message = re.sub(r"\b(found|expected) \([^()]*\)", r"\1 ...", message)
    message = re.sub(r" \((?=[^)]*\d)[^()]*\)", "", message)
    message = re.sub(r"(?<![\w.])(?!0 samples)-?\d[\d.]*(?:[eE][+-]?\d+)?(?<!\.)", "N", message)
    message = re.sub(r"\s+", " ", message).strip(" :,.")
    return (message if len(message) <= 120 else message[:117].rsplit(" ", 1)[0] + "...") or "unreadable"
