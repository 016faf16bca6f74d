"""
From a source to a store: index the recordings, read them part by part, split them.

    OUT/.ecgfm-work/plan.json   the preparation's settings and a digest of its list of recordings
    OUT/.ecgfm-work/parts-*/    the recordings, part by part; see `utils/resumable_parts.py`
    OUT/.ecgfm-work/finished/   the complete store, before it is moved into OUT; see `store_assembly.py`

A run that was killed is resumed by the next one. With `shard`, several machines write parts into one folder (or into
copies that are merged later), and a run without `shard` completes the store.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from ..records.record import ECGRecord
from ..records.store_rows import row_from_record
from ..utils.files import atomic_path, private_folder
from ..utils.integrity import share_checksums
from ..utils.resumable_parts import (
    Distribute,
    Executor,
    ItemWatch,
    LocalExecutor,
    PartAccount,
    ResumableParts,
    Task,
    content_digest,
    exclusive,
)
from .exclusion import Excluded, exclude, filter_recordings
from .report import StoreOrigin, define_labels_of, store_report
from .sources.base import Source, SourceIndex
from .splits import SplitSettings, match_published_splits
from .store import (
    CARD_FILE,
    CHECKSUMS_FILE,
    DATA_FOLDER,
    LABEL_DEF_FILE,
    OPTIONAL_COLUMNS,
    REPORT_FILE,
    WORK_FOLDER,
    DataError,
    StoreWriter,
    read_report,
    store_schema,
)
from .store_assembly import SMALL_COLUMNS, assemble_store, complete_move, most_common, remove_leftovers, split_rows

_FORMAT = 1  # of stores; another number is another layout
_FEWEST, _MOST, _PARTS = 64, 4096, 64
_PSEUDONYM_BYTES = 12  # 24 hexadecimal digits: two of a million ids share a pseudonym with a chance of 1e-17


@dataclass(frozen=True)
class PrepareSettings:
    """
    All settings of a store besides its source.

    Args:
        split ([`SplitSettings`]): How to split, and what to exclude before.
        keep_sources, drop_sources (sequences of `str`, *optional*): Only these sources; all but these.
        drop (sequence of `str`): Columns to empty, among `OPTIONAL_COLUMNS`.
        pseudonymise (`bool`): Hashes in place of recording and patient ids, no paths.
        salt_file (`str` or `Path`, *optional*): For the same pseudonyms in several preparations; created where it does
            not exist. Without it a salt is drawn, and deleted at the end.
    """

    split: SplitSettings = field(default_factory=SplitSettings)
    keep_sources: Sequence[str] | None = None
    drop_sources: Sequence[str] | None = None
    drop: Sequence[str] = ()
    pseudonymise: bool = False
    salt_file: str | Path | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.drop if name not in OPTIONAL_COLUMNS]:
            raise DataError(f"cannot drop {', '.join(unknown)}, only {', '.join(OPTIONAL_COLUMNS)}")
        if self.salt_file is not None and not self.pseudonymise:
            raise DataError("a salt file needs pseudonymise=True")


def prepare(
    source: Source,
    out: str | os.PathLike,
    settings: PrepareSettings | None = None,
    *,
    num_proc: int = 1,
    shard: tuple[int, int] | None = None,
    distribute: Distribute | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any] | None:
    """
    Write a store. After a kill, the same call resumes; on a finished store, it does nothing.

    Args:
        source ([`Source`])
        out (`str` or `Path`): Folder; new, empty, or of the same preparation.
        settings ([`PrepareSettings`], *optional*)
        num_proc (`int`): Processes.
        shard (`tuple[int, int]`, *optional*): `(i, n)`, i from 0: write this machine's parts only; a run without it
            completes the store.
        distribute (*optional*): Has the recordings read on several machines, such as
            `functools.partial(ecgfm_hf.distributed.RayExecutor, address="auto")`.
        overwrite (`bool`): Discard a store in `out`, finished or not.
        progress (`bool`): Show progress bars on standard error.

    Returns:
        The report, as in `report.json`; None for a shard.

    Raises:
        `ResumeError`: `out` has an unfinished store of another preparation, or a file has changed since.
        `DataError`, `SplitError`: the store cannot be written as asked for.

    Recordings that cannot be read raise nothing: the report lists them.
    """
    settings = settings or PrepareSettings()
    if num_proc < 1:
        raise DataError(f"num_proc must be at least 1, found {num_proc}")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise DataError(f"shard must be (i, n) with i from 0 to n - 1, found {shard}")
    if overwrite and shard is not None:
        raise DataError("overwrite and shard exclude each other: each machine would discard the others' parts")
    out = Path(out)
    store_schema(source.label_names)  # an error for impossible names of labels, before anything is read
    _check_folder(out, overwrite)
    work = out / WORK_FOLDER
    salt = _salt(settings, None if overwrite else work)
    index = build_index(source, settings, salt)
    published = published_splits_of(index, settings)
    settings.split.check(index.table, published)
    described = _describe(source, settings)
    plan = described | {"split": settings.split.to_json(), "recordings": table_digest(index.table)}
    # No process that reads needs the ids behind pseudonyms.
    rows = index.table.select([name for name in index.table.column_names if name not in ("_id", "_patient")])
    writer = RecordingWriter(source, rows, settings.pseudonymise)
    parts = ResumableParts(work, plan, index.table.num_rows, part_size(index.table.num_rows), writer.stamps)
    if overwrite:
        _clear(out)
    finished = _finished_report(out, parts, shard)
    if finished is None:
        parts.claim()
        if salt is not None and overwrite and settings.salt_file is None:
            _create_salt(work / "salt", salt)
        # Look again: another process may have completed the store, and removed its work folder, just before.
        finished = _finished_report(out, parts, shard)
    if finished is not None:
        remove_leftovers(out)
        return None if shard else finished
    try:
        if num_proc > 1:
            share_checksums(private_folder())
        executor: Executor = LocalExecutor(writer, num_proc)
        if distribute is not None:
            executor = distribute(partial(LocalExecutor, writer, 1), [source.root] if hasattr(source, "root") else [])
        parts.run(executor, shard=shard or (0, 1), progress=progress, description=source.name)
        if shard is not None:
            return None
        with exclusive(work):
            accounts = parts.accounts()
            excluded = [Excluded.from_json(failure) for account in accounts for failure in account.failures]
            codes = Counter[str]()
            for account in accounts:
                codes.update(account.counts)
            made_by = {"plan": parts.digest, "contents": [account.content for account in accounts]}
            return assemble_store(
                out,
                work,
                parts.paths,
                source.label_names,
                settings.split,
                StoreOrigin(described | made_by, index.excluded + excluded, index.notes, codes),
                published=published,
                originals=_originals(index) if settings.pseudonymise else None,
                num_proc=num_proc,
                progress=progress,
            )
    except FileNotFoundError:
        # Another process that prepares the same store may have completed it meanwhile.
        finished = _finished_report(out, parts, shard)
        if finished is None:
            raise
        return None if shard else finished


def part_size(num_recordings: int) -> int:
    """Return the recordings a part: about 64 parts, of 64 to 4,096 recordings (some 230 MB)."""
    return min(max(-(-num_recordings // _PARTS), _FEWEST), _MOST)


@dataclass(frozen=True)
class RecordingWriter:
    """
    Writes the rows of a part: a `PartWriter`.

    Args:
        source ([`Source`])
        index (`pa.Table`): The source's index; a part is a range of its rows.
        pseudonyms (`bool`): The index's ids are pseudonyms, so nothing written may name a file.
    """

    source: Source
    index: pa.Table
    pseudonyms: bool = False

    def stamps(self, task: Task) -> list[tuple[str, str]]:
        """Return the id of each recording of a part with a text that changes with the content of its files."""
        rows = self.index.slice(task.start, task.stop - task.start)
        return list(zip(rows["recording_id"].to_pylist(), self.source.stamps(rows), strict=True))

    def __call__(self, task: Task, path: Path, watch: ItemWatch) -> PartAccount:
        source, codes, account = self.source, Counter[str](), PartAccount()
        account.content = content_digest(stamp for _, stamp in self.stamps(task))

        def entries() -> Iterator[dict[str, Any]]:
            for entry in self.index.slice(task.start, task.stop - task.start).to_pylist():
                if entry["recording_id"] not in watch.deadly:
                    watch.begin(entry["recording_id"])
                    yield entry
                    continue
                file = None if self.pseudonyms else entry.get("path")
                reasons = ("the process that read it died", "the process that read it died")
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
    """Return the store's row of a recording with its row in the index, or the error that prevents it."""
    columns = {name: value for name, value in entry.items() if not name.startswith("_")}
    columns["source"] = columns.get("source") or source.name
    try:
        row = row_from_record(record, **(columns | source.labels(record, entry)))
    except (ValueError, OverflowError) as error:
        return error
    if pseudonyms:
        row["path"] = None
        row["patient_id"] = entry.get("patient_id")  # never the id in the file itself
    return row


def rehearse(source: Source, settings: PrepareSettings, progress: bool = False) -> dict[str, Any]:
    """
    Read and split a source's recordings as [`prepare`] does, and write nothing.

    Returns:
        The report that [`prepare`] would write.

    Raises:
        `DataError`, `SplitError`: as [`prepare`].
    """
    index = build_index(source, settings, b"of a dry run" if settings.pseudonymise else None)
    published = published_splits_of(index, settings)
    settings.split.check(index.table, published)
    excluded, codes = list(index.excluded), Counter[str]()
    columns = [*SMALL_COLUMNS, *source.label_names]
    found: dict[str, list] = {name: [] for name in columns}
    entries = tqdm(index.table.to_pylist(), disable=not progress, desc=source.name, unit="recording")
    for entry, record in source.read(entries):
        row = record if isinstance(record, Exception) else row_of(source, record, entry, settings.pseudonymise)
        if isinstance(row, Exception):
            excluded.append(exclude(entry, row, getattr(source, "root", None), settings.pseudonymise))
            continue
        codes.update(row["diagnoses"])
        for name in columns:
            found[name].append(row[name])
    schema = store_schema(source.label_names)
    rows = pa.table({name: pa.array(values, schema.field(name).type) for name, values in found.items()})
    originals = _originals(index) if settings.pseudonymise else None
    _, kept, result, excluded = split_rows(rows, settings.split, excluded, published, originals)
    origin = StoreOrigin(_describe(source, settings), excluded, index.notes, codes)
    definition = define_labels_of(kept, source.label_names, result)
    return store_report(origin, settings.split.filters, result, kept, definition, excluded)


def build_index(source: Source, settings: PrepareSettings, salt: bytes | None = None) -> SourceIndex:
    """Return the recordings to read, sorted by id, with sources filtered and ids replaced (by `salt`) as set."""
    index = source.index()
    table, excluded = index.table.sort_by("recording_id"), list(index.excluded)
    unnamed = table.filter(pc.is_null(table["recording_id"]))
    excluded += [Excluded(None, path, "index", "no recording_id") for path in unnamed["path"].to_pylist()]
    table = table.filter(pc.is_valid(table["recording_id"]))
    if not table.num_rows:
        raise DataError(f"{source.name}: no recordings to read: {most_common(excluded)}")
    if settings.keep_sources is not None or settings.drop_sources is not None:
        names = table["source"].to_pylist() if "source" in table.column_names else [source.name] * table.num_rows
        found = filter_recordings(sources=names, keep_sources=settings.keep_sources, drop_sources=settings.drop_sources)
        gone = table.filter(pa.array(~found.keep))
        excluded += [
            Excluded(recording, path, "filter", "its source is excluded")
            for recording, path in zip(gone["recording_id"].to_pylist(), gone["path"].to_pylist(), strict=True)
        ]
        table = table.filter(pa.array(found.keep))
    if settings.split.published is not None:
        # Before ids become pseudonyms, which the published file does not contain.
        table = table.append_column(
            "_split", pa.array(match_published_splits(table, source.name, settings.split.published))
        )
    if settings.pseudonymise:
        salt = b"" if salt is None else salt
        # Ids stay in memory beside their pseudonyms, because splits are drawn by ids. They are never written.
        table = table.append_column("_id", table["recording_id"])
        if "patient_id" in table.column_names:
            table = table.append_column("_patient", table["patient_id"])
        table = pseudonymise_index(table, salt)
        excluded = [
            Excluded(pseudonym(one.recording_id, salt, "recording"), None, one.stage, one.reason) for one in excluded
        ]
    return SourceIndex(table, excluded, list(index.notes))


def _originals(index: SourceIndex) -> dict[str, tuple[str, str | None]]:
    """Return the recording and the patient behind each pseudonym."""
    table = index.table
    patients = table["_patient"].to_pylist() if "_patient" in table.column_names else [None] * table.num_rows
    return dict(
        zip(table["recording_id"].to_pylist(), zip(table["_id"].to_pylist(), patients, strict=True), strict=True)
    )


def published_splits_of(index: SourceIndex, settings: PrepareSettings) -> dict[str, str | None] | None:
    """Return the split of each recording of an imported split, by its id in the index; None for other splits."""
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
        raise DataError(
            f"{work.parent} has a store. Without a salt file, another preparation would have other pseudonyms. Give a "
            "new folder, or discard the store with overwrite=True"
        )
    work.mkdir(parents=True, exist_ok=True)
    return read_salt(work / "salt")


def _describe(source: Source, settings: PrepareSettings) -> dict[str, Any]:
    """Return the settings that begin the report."""
    return {
        "format": _FORMAT,
        "source": source.name,
        "source_settings": json.loads(json.dumps(source.settings, default=str)),
        "labels": list(source.label_names),
        "keep_sources": None if settings.keep_sources is None else sorted(settings.keep_sources),
        "drop_sources": None if settings.drop_sources is None else sorted(settings.drop_sources),
        "dropped_columns": sorted(settings.drop),
        "pseudonymised": settings.pseudonymise,
    }


def table_digest(table: pa.Table) -> str:
    """Return a hash of a table's content."""
    digest = hashlib.sha256(table.schema.serialize())
    for batch in table.combine_chunks().to_batches(max_chunksize=10_000):
        digest.update(batch.serialize())
    return digest.hexdigest()


_DATA_FILE = re.compile(r".+-\d{5}-of-\d{5}\.parquet")
_STORE_NAMES = {WORK_FOLDER, DATA_FOLDER, REPORT_FILE, CHECKSUMS_FILE, LABEL_DEF_FILE, CARD_FILE}


def _check_folder(out: Path, overwrite: bool) -> None:
    """Raise `DataError` where `out` contains other files than a store's, before anything is changed."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, expected a folder")
    if not out.exists():
        return
    complete_move(out)
    names = {path.name for path in out.iterdir()}
    try:
        read_report(out)
    except DataError:
        foreign = names - {WORK_FOLDER}
    else:
        # What is replaced is removed before, so nothing else may be in it.
        data = (path.name for path in (out / DATA_FOLDER).glob("*") if not _DATA_FILE.fullmatch(path.name))
        foreign = {*(names - _STORE_NAMES), *(f"{DATA_FOLDER}/{name}" for name in data)} if overwrite else set()
        remove_leftovers(out)
    if foreign:
        raise DataError(f"{out} contains other files ({', '.join(sorted(foreign)[:3])}); give a new folder")


def _clear(out: Path) -> None:
    for name in _STORE_NAMES:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _finished_report(out: Path, parts: ResumableParts, shard: tuple[int, int] | None) -> dict[str, Any] | None:
    if not (out / REPORT_FILE).is_file():
        return None
    report = read_report(out)
    if report["plan"] != parts.digest:
        raise DataError(
            f"{out} has a store of another preparation or of other files. Give a new folder, or discard the store with "
            "overwrite=True"
        )
    parts.check_contents(report["contents"], out, shard or (0, 1))
    return report


def pseudonym(value: str | None, salt: bytes, kind: str) -> str | None:
    """Return the pseudonym of an id, None for None. `kind` separates a patient and a recording with the same id."""
    if value is None:
        return None
    return hmac.new(salt, f"{kind}\0{value}".encode(), hashlib.sha256).digest()[:_PSEUDONYM_BYTES].hex()


def read_salt(path: Path) -> bytes:
    """
    Return the salt in a file, which is created, readable by its owner only, where it does not exist.

    With the salt, anyone can compute the pseudonym of an id.

    Raises:
        [`DataError`]: fewer than 16 bytes.
    """
    if not path.exists():
        _create_salt(path, secrets.token_hex(32).encode())
    salt = path.read_bytes().strip()
    if len(salt) < 16:
        raise DataError(f"{path}: {len(salt)} bytes of salt, expected at least 16 (or no file: it is created)")
    return salt


def _create_salt(path: Path, salt: bytes) -> None:
    # Two machines that start at once must use one salt.
    with contextlib.suppress(FileExistsError), atomic_path(path, private=True, overwrite=False) as scratch:
        scratch.write_bytes(salt + b"\n")


def pseudonymise_index(table: pa.Table, salt: bytes) -> pa.Table:
    """Return the index with pseudonyms, sorted by them: the order of the ids would identify recordings."""
    for name, kind in (("recording_id", "recording"), ("patient_id", "patient")):
        if name in table.column_names:
            values = [pseudonym(value, salt, kind) for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table.sort_by("recording_id")
