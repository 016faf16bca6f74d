"""
From a source to a store: index, read, split, account.

    OUT/.ecgfm-work/plan.json   what is being made; a second run compares and goes on
    OUT/.ecgfm-work/parts/      the recordings, part by part (`parts.py`)
    OUT/.ecgfm-work/finished/   the store as it will be; once complete it is moved into OUT, and the folder goes

A run that is killed leaves parts behind and the next one goes on with them. With `shard`, several machines write parts
into one folder (or into copies that are put together later), and a run without `shard` finishes.
"""

import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..records.record import ECGRecord
from ..records.rows import row_from_record
from ..utils.errors import ECGFMError
from ..utils.resumable_parts import ItemWatch, LocalExecutor, PartAccount, ResumableParts, Task, exclusive
from .exclusion import Excluded, exclude, filter_recordings
from .sources.base import Source, SourceIndex
from .splits import SplitSettings, match_published_splits
from .store import (
    CARD_FILE,
    DATA_FOLDER,
    LABEL_DEF_FILE,
    OPTIONAL_COLUMNS,
    REPORT_FILE,
    WORK_FOLDER,
    StoreError,
    StoreWriter,
    read_report,
    store_schema,
)
from .store_assembly import finish_store, roll_forward, sweep

_FORMAT = 1  # of stores; another number is another layout


class PrepareError(ECGFMError, ValueError):
    """A preparation that cannot begin or go on. The message names the folder and what to do."""


@dataclass(frozen=True)
class PrepareSettings:
    """
    What decides a store besides its source.

    Args:
        split ([`SplitSettings`]): How to split, and what to leave out before.
        keep_sources, drop_sources (sequences of `str`, *optional*): Only these sources; all but these.
        drop (sequence of `str`): Columns to leave empty, among `OPTIONAL_COLUMNS`.
        pseudonymise (`bool`): Hashes in place of recording and patient ids, no paths.
        salt_file (`str` or `Path`, *optional*): For the same pseudonyms in several preparations; made where it does not
            exist. Without it the salt is drawn and thrown away at the end.
    """

    split: SplitSettings = field(default_factory=SplitSettings)
    keep_sources: Sequence[str] | None = None
    drop_sources: Sequence[str] | None = None
    drop: Sequence[str] = ()
    pseudonymise: bool = False
    salt_file: str | Path | None = None

    def __post_init__(self):
        if unknown := [name for name in self.drop if name not in OPTIONAL_COLUMNS]:
            raise PrepareError(f"cannot drop {', '.join(unknown)}, only {', '.join(OPTIONAL_COLUMNS)}")
        if self.salt_file is not None and not self.pseudonymise:
            raise PrepareError("a salt file is for pseudonymise")


def prepare(
    source: Source,
    out: str | os.PathLike,
    settings: PrepareSettings | None = None,
    *,
    num_proc: int = 1,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any] | None:
    """
    Write a store. Run again after a kill, it goes on where it was; run again on a finished store, it does nothing.

    Args:
        source ([`Source`])
        out (`str` or `Path`): Folder; new, empty, or of the same preparation.
        settings ([`PrepareSettings`], *optional*)
        num_proc (`int`): Processes.
        shard (`tuple[int, int]`, *optional*): `(i, n)`, i from 0: write this machine's parts only; a run without it
            finishes the store.
        overwrite (`bool`): Throw away a store, or an unfinished one, that is in `out`.
        progress (`bool`): Progress bars on standard error.

    Returns:
        The report, as in `report.json`; None for a shard.

    Raises:
        [`PrepareError`], `SourceError`, `SplitError`, `StoreError`: what is asked for cannot be had. Recordings that
        cannot be read are no errors: the report lists them.
    """
    settings = settings or PrepareSettings()
    if num_proc < 1:
        raise PrepareError(f"num_proc must be at least 1, found {num_proc}")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise PrepareError(f"shard must be (i, n) with i from 0 to n - 1, found {shard}")
    if overwrite and shard is not None:
        raise PrepareError("overwrite and shard do not go together: each machine would throw away the others' parts")
    out = Path(out)
    store_schema(source.label_names)  # labels of impossible names, before anything is read
    _check_folder(out, overwrite)
    work = out / WORK_FOLDER
    salt = _salt(settings, None if overwrite else work)
    index = build_index(source, settings, salt)
    published = published_splits_of(index, settings)
    settings.split.check(index.table, published)
    facts = _plan(source, settings)
    plan = {**facts, "recordings": index_digest(index.table, hashlib.sha256()).hexdigest()}
    parts = ResumableParts(work, plan, index.table.num_rows, part_size(index.table.num_rows))
    if overwrite:
        _clear(out)
    finished = _finished_report(out, parts.digest)
    if finished is None:
        parts.claim()
        if salt is not None and overwrite and settings.salt_file is None:
            _keep_salt(work / "salt", salt)
        # Again: another process may have finished, and removed its folder, just before this one made it.
        finished = _finished_report(out, parts.digest)
    if finished is not None:
        sweep(out)
        return None if shard else finished
    try:
        writer = RecordingWriter(source, index.table, settings.pseudonymise)
        parts.run(LocalExecutor(writer, num_proc), shard=shard or (0, 1), progress=progress, description=source.name)
        if shard is not None:
            return None
        with exclusive(work):
            accounts = parts.accounts()
            excluded = [Excluded(**failure) for account in accounts for failure in account.failures]  # type: ignore[arg-type]
            codes = Counter[str]()
            for account in accounts:
                codes.update(account.counts)
            return finish_store(
                out,
                work,
                parts.paths,
                source.label_names,
                settings.split,
                {
                    **facts,
                    "plan": parts.digest,
                    "excluded": index.excluded + excluded,
                    "notes": index.notes,
                    "codes": codes,
                },
                published=published,
                originals=_originals(index) if settings.pseudonymise else None,
                num_proc=num_proc,
                progress=progress,
            )
    except FileNotFoundError:
        # Another process that prepares the same store may have finished it under this one's hands.
        finished = _finished_report(out, parts.digest)
        if finished is None:
            raise
        return None if shard else finished


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
                account.failures.append(asdict(Excluded(entry["recording_id"], file, "read", *reasons)))

        with StoreWriter(path, store_schema(source.label_names)) as writer:
            for entry, record in source.read(entries()):
                row = record if isinstance(record, Exception) else row_of(source, record, entry, self.pseudonyms)
                if isinstance(row, Exception):
                    account.failures.append(asdict(exclude(entry, row, getattr(source, "root", None), self.pseudonyms)))
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


def build_index(source: Source, settings: PrepareSettings, salt: bytes | None = None) -> SourceIndex:
    """The recordings to read, sorted by id, with sources filtered and ids replaced (by `salt`) as the settings say."""
    index = source.index()
    table, excluded = index.table.sort_by("recording_id"), list(index.excluded)
    unnamed = table.filter(pc.is_null(table["recording_id"]))
    excluded += [Excluded(None, path, "index", "no recording_id") for path in unnamed["path"].to_pylist()]
    table = table.filter(pc.is_valid(table["recording_id"]))
    if not table.num_rows:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in Counter(o.reason for o in excluded).items())
        raise PrepareError(f"{source.name}: there is no recording to read (left out: {reasons or 'none'})")
    if settings.keep_sources is not None or settings.drop_sources is not None:
        names = table["source"].to_pylist() if "source" in table.column_names else [source.name] * table.num_rows
        found = filter_recordings(sources=names, keep_sources=settings.keep_sources, drop_sources=settings.drop_sources)
        gone = table.filter(pa.array(~found.keep))
        excluded += [
            Excluded(recording, path, "filter", "of a source that was left out")
            for recording, path in zip(gone["recording_id"].to_pylist(), gone["path"].to_pylist(), strict=True)
        ]
        table = table.filter(pa.array(found.keep))
    if settings.split.published is not None:
        # Before ids turn into pseudonyms, which the published file does not know.
        table = table.append_column(
            "_split", pa.array(match_published_splits(table, source.name, settings.split.published))
        )
    # Files that change, and another folder with the same names in it, make another preparation.
    stamps = source.stamps(table)
    if stamps is not None:
        table = table.append_column("_stamp", pa.array(stamps, pa.string()))
    if settings.pseudonymise:
        salt = b"" if salt is None else salt
        # Kept beside the pseudonyms while preparing, and never written: splits are drawn by the ids themselves.
        table = table.append_column("_id", table["recording_id"])
        if "patient_id" in table.column_names:
            table = table.append_column("_patient", table["patient_id"])
        table = pseudonymise_index(table, salt)
        excluded = [
            Excluded(pseudonym(one.recording_id, salt, "recording"), None, one.stage, one.reason) for one in excluded
        ]
    return SourceIndex(table, excluded, list(index.notes))


def _originals(index: SourceIndex) -> dict[str, tuple[str, str | None]]:
    """The recording and the patient behind each pseudonym."""
    table = index.table
    patients = table["_patient"].to_pylist() if "_patient" in table.column_names else [None] * table.num_rows
    return dict(
        zip(table["recording_id"].to_pylist(), zip(table["_id"].to_pylist(), patients, strict=True), strict=True)
    )


def published_splits_of(index: SourceIndex, settings: PrepareSettings) -> dict[str, str | None] | None:
    """Of an imported split, the split of each recording in the index, by its id there; otherwise None."""
    if settings.split.published is None:
        return None
    return dict(zip(index.table["recording_id"].to_pylist(), index.table["_split"].to_pylist(), strict=True))


def _salt(settings: PrepareSettings, work: Path | None) -> bytes | None:
    if not settings.pseudonymise:
        return None
    if settings.salt_file is not None:
        return read_salt(Path(settings.salt_file))
    if work is None:
        return secrets.token_hex(32).encode()
    if (work.parent / REPORT_FILE).is_file():
        raise PrepareError(
            f"{work.parent} holds a store. Without a salt file a second preparation would have other pseudonyms: "
            "overwrite it, or give a new folder"
        )
    work.mkdir(parents=True, exist_ok=True)
    return read_salt(work / "salt")


def _keep_salt(path: Path, salt: bytes) -> None:
    # Whole or not at all: a salt cut short by a kill would be refused for ever.
    scratch = path.with_suffix(f".{os.getpid()}.partial")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(salt + b"\n")
    os.replace(scratch, path)


def _plan(source: Source, settings: PrepareSettings) -> dict[str, Any]:
    """What decides a store besides the recordings."""
    return {
        "format": _FORMAT,
        "source": source.name,
        "source_settings": json.loads(json.dumps(source.settings, default=str)),
        "labels": list(source.label_names),
        "keep_sources": None if settings.keep_sources is None else sorted(settings.keep_sources),
        "drop_sources": None if settings.drop_sources is None else sorted(settings.drop_sources),
        "dropped_columns": sorted(settings.drop),
        "pseudonymised": settings.pseudonymise,
        "split": settings.split.to_json(),
    }


def index_digest(table: pa.Table, digest: Any) -> Any:
    """Feeds a table's content to a hash of hashlib, and returns it."""
    with pa.ipc.new_stream(pa.PythonFile(_Digest(digest), mode="w"), table.schema) as stream:
        for batch in table.combine_chunks().to_batches(max_chunksize=10_000):
            stream.write_batch(batch)
    return digest


class _Digest:
    """A file that only remembers a hash of what was written to it."""

    closed = False

    def __init__(self, digest):
        self._digest = digest

    def write(self, content) -> int:
        self._digest.update(content)
        return len(content)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


_OURS = {WORK_FOLDER, DATA_FOLDER, REPORT_FILE, LABEL_DEF_FILE, CARD_FILE}


def _check_folder(out: Path, overwrite: bool) -> None:
    """`PrepareError` where `out` holds something that is not ours. Nothing is touched before that is known."""
    if out.exists() and not out.is_dir():
        raise PrepareError(f"{out} is a file, expected a folder")
    if not out.exists():
        return
    roll_forward(out)
    names = {path.name for path in out.iterdir()}
    try:
        read_report(out)
    except StoreError:
        strangers = names - {WORK_FOLDER}
    else:
        strangers = names - _OURS if overwrite else set()
        sweep(out)
    if strangers:
        raise PrepareError(f"{out} has something else in it ({', '.join(sorted(strangers)[:3])}); give a new folder")


def _clear(out: Path) -> None:
    for name in _OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _finished_report(out: Path, plan: str) -> dict[str, Any] | None:
    if not (out / REPORT_FILE).is_file():
        return None
    report = read_report(out)
    if report["plan"] != plan:
        raise PrepareError(f"{out} holds a store of another preparation or of other files; overwrite replaces it")
    return report


_BYTES = 12  # 24 hexadecimal digits: of a million ids, two share a pseudonym with a chance of 1e-17


def pseudonym(value: str | None, salt: bytes, kind: str) -> str | None:
    """The pseudonym of an id; `kind` keeps a patient and a recording of one number apart. None stays None."""
    if value is None:
        return None
    return hmac.new(salt, f"{kind}\0{value}".encode(), hashlib.sha256).digest()[:_BYTES].hex()


def read_salt(path: Path) -> bytes:
    """
    The salt in a file, which is made, readable by its owner alone, where there is none. Whoever has it can find out
    which pseudonym belongs to an id that they know.

    Raises:
        `ValueError`: fewer than 16 bytes.
    """
    if not path.exists():
        # Whole or not at all, and never in place of another: two machines that begin at once must have one salt.
        scratch = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.partial")
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(scratch, path)
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    salt = path.read_bytes().strip()
    if len(salt) < 16:
        raise ValueError(f"{path}: {len(salt)} bytes of salt, expected at least 16 (or no file: it is made)")
    return salt


def pseudonymise_index(table: pa.Table, salt: bytes) -> pa.Table:
    """The index with pseudonyms, in their order: the order of the ids would tell which is which."""
    for name, kind in (("recording_id", "recording"), ("patient_id", "patient")):
        if name in table.column_names:
            values = [pseudonym(value, salt, kind) for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table.sort_by("recording_id")
