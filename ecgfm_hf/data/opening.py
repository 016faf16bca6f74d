"""
Open data: stores that `ecgfm prepare` wrote and processed folders of fairseq-signals, as datasets of the same rows.

Whatever reads recordings by split opens them here.
"""

import atexit
import functools
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from filelock import FileLock

from ..fairseq.folder_reading import IDX, SEGMENT_FILES, FairseqFolder, is_fairseq_folder
from ..fairseq.manifests import FairseqFolderError
from ..records.store_rows import COLUMNS
from ..utils.files import locked_folder, remove_abandoned
from ..utils.integrity import CHECKSUMS_FILE, changed_files, read_checksums
from .splits import UNSPLIT
from .store import (
    DATA_FOLDER,
    REPORT_FILE,
    DataError,
    check_files,
    check_footers,
    content_digest,
    read_report,
    store_files,
    store_schema,
    with_schema,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict

logger = logging.getLogger(__name__)

_TEMPORARY = "ecgfm-"  # begins the names of folders for temporary files


def is_processed_folder(path: str | Path) -> bool:
    """Return whether a folder is a processed folder of fairseq-signals, and no store."""
    return not (Path(path) / REPORT_FILE).is_file() and is_fairseq_folder(path)


def label_file(targets: str | None) -> str | None:
    """Return `targets` where it is a processed folder's file of labels (`y.npy`), not a table by recording."""
    return targets if targets is not None and targets.endswith(".npy") else None


def split_names(path: str | Path) -> tuple[str, ...]:
    """
    Return the splits of a store or a processed folder.

    Raises:
        `DataError`: it is neither.
    """
    path = local_store(path)
    if is_processed_folder(path):
        return _folder(path, None, None).splits
    return tuple(read_report(path)["splits"]["recordings"])


def data_digest(
    paths: Sequence[str | Path], splits: Sequence[str], *, labels: str | Path | None = None, pairs: bool = False
) -> str:
    """
    Return a digest of what splits hold: of stores their content, of processed folders their manifests and labels.

    Raises:
        `DataError`: a path that is neither.
    """
    found = []
    for path in map(local_store, paths):
        if is_processed_folder(path):
            try:
                found.append(_folder(path, None, labels).digest(splits, pairs))
            except FairseqFolderError as error:
                raise DataError(str(error)) from error
        else:
            files = store_files(path)
            found.append(content_digest([file for split in splits for file in files.get(split, ())]))
    return found[0] if len(found) == 1 else hashlib.sha256(repr(found).encode()).hexdigest()


def load_prepared(
    store: str | Path | Sequence[str | Path],
    split: str | None = None,
    *,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    root: str | Path | None = None,
    labels: str | Path | None = None,
    pairs: bool = False,
) -> "Dataset | DatasetDict | IterableDataset | IterableDatasetDict":
    """
    Open a store that `ecgfm prepare` wrote, a processed folder of fairseq-signals, or several one after the other.

    The rows of a processed folder have no `signal` but `segment_files`. [`as_model_inputs`] reads these when it needs
    them, as they are: they were standardised when the folder was made.

    Args:
        store (`str` or `Path`, or a sequence of them): Also an address of fsspec, such as `s3://bucket/store`, which is
            copied to `TMPDIR` first. Several with different labels give all labels; a label that one does not have is
            None (unknown) there, never 0.
        split (`str`, *optional*): Defaults to all splits, as a dictionary.
        streaming (`bool`): Read the Parquet files from first to last, without a copy; each is checked for damage
            before its first row. Otherwise all are checked, and 🤗 datasets writes an uncompressed, memory-mapped copy,
            so that rows can be read in any order.
        cache_dir (`str` or `Path`, *optional*): Folder to keep that copy in. By default it goes to a folder for
            temporary files (`TMPDIR`) that only this user can read, and is removed when the process ends.
        root, labels: Of processed folders: see [`FairseqFolder`].
        pairs (`bool`): Of processed folders, read the manifests of pairs (`cmsc`), which have no labels.

    Returns:
        `Dataset` or `DatasetDict` (their `Iterable` kin if streaming) with `COLUMNS` and one column per label: 1, 0 or
        None for unknown. [`record_from_row`] gives the recording of a row, [`as_model_inputs`] a model's input.

    Raises:
        `DataError`: no store, an unfinished or damaged one, no such split; no space for the copy.
    """
    if not isinstance(store, str | os.PathLike):
        return _load_several(list(store), split, streaming, cache_dir, {"root": root, "labels": labels, "pairs": pairs})
    store = local_store(store)
    if is_processed_folder(store):
        return _load_folder(_folder(store, root, labels), split, streaming, pairs)
    if root is not None:
        raise DataError(f"root={root} names the segments of a processed folder, but {store} is none: leave it out")
    from datasets.exceptions import DatasetGenerationError

    from .store_builder import StoreBuilder

    files = store_files(store)
    if split is not None and split not in files:
        raise DataError(f"{store} has no split {split!r}, only {', '.join(files)}")
    wanted = {name: paths for name, paths in files.items() if split in (None, name)}
    paths = [path for found in wanted.values() for path in found]
    content = content_digest(paths)
    # 🤗 datasets reserves the name `all`.
    their_name = {name: "train" if name == UNSPLIT else name for name in files}
    builder = StoreBuilder(
        data_files={their_name[name]: [str(path) for path in found] for name, found in wanted.items()},
        cache_dir=str(Path(private_folder() if cache_dir is None else cache_dir) / content[:16]),
    )
    their_split = None if split is None else their_name[split]
    data: Any  # of four kinds
    if streaming:
        check_footers(store, paths)
        data = builder.as_streaming_dataset(split=their_split)
    else:
        if not os.path.isdir(builder.cache_dir):
            check_files(store, paths)  # all before the first is copied
        try:
            builder.download_and_prepare()
        except DatasetGenerationError as error:
            raise DataError(
                f"{store} cannot be copied for reading in any order (is the disk full?): {error.__cause__ or error}"
            ) from error
        data = builder.as_dataset(split=their_split)
        # 🤗 datasets goes by files' names and times, which a changed file may share with the one before.
        for name, dataset in {"": data}.items() if split is not None else data.items():
            dataset._fingerprint = hashlib.sha256(f"{content} {name or split}".encode()).hexdigest()[:16]
    if split is not None or UNSPLIT not in files:
        return data
    return type(data)({UNSPLIT: data["train"]})


def local_store(store: str | Path) -> str | Path:
    """
    Return a path of this machine for a store: itself, or where it is copied to from an address of fsspec.

    An address is such as `s3://bucket/store`. The copy goes to [`private_folder`], once for all processes that one
    launcher started on this machine, and all of it is checked for damage.

    Raises:
        `DataError`: no store there, or a damaged one; no library for this kind of address; no space for the copy.
    """
    return _copied(os.fspath(store)) if "://" in os.fspath(store) else store


@functools.cache
def _copied(address: str) -> Path:
    import fsspec

    folder = private_folder() / f"store-{hashlib.sha256(address.encode()).hexdigest()[:16]}"
    try:
        system, root = fsspec.core.url_to_fs(address)
        with FileLock(f"{folder}.lock"):
            if folder.exists():  # another process of this run has copied it
                return folder
            scratch = folder.with_suffix(".partial")
            shutil.rmtree(scratch, ignore_errors=True)
            (scratch / DATA_FOLDER).mkdir(parents=True)
            system.get_file(f"{root}/{CHECKSUMS_FILE}", str(scratch / CHECKSUMS_FILE))
            names = read_checksums(scratch)["files"]
            if strange := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
                raise DataError(f"{address}: {CHECKSUMS_FILE} names {strange[0]}, which is no file of a store")
            for name in names:
                system.get_file(f"{root}/{name}", str(scratch / name))
            if changed := changed_files(scratch):
                raise DataError(f"{address} is damaged: {'; '.join(changed[:3])}. Copy it there again")
            scratch.rename(folder)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{address}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{address} is no store, or not a whole one: {error} is missing") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{address} cannot be copied to {folder.parent} ({error}): check the address and its access; if the "
            "disk is full, set TMPDIR to another folder"
        ) from error
    return folder


@functools.cache
def private_folder() -> Path:
    """
    Return a folder for temporary files that only this user can read, removed when the process ends.

    The processes that one launcher started on this machine share it, so that one of them makes the copy that all read.
    What killed processes left is removed, too.
    """
    rank, root = os.environ.get("LOCAL_RANK"), Path(tempfile.gettempdir())
    if rank not in (None, "0"):
        return _shared_folder(root)
    remove_abandoned(root, _TEMPORARY)
    made = locked_folder(lambda: tempfile.mkdtemp(prefix=_TEMPORARY) if rank is None else _shared_folder(root))
    # Files stay readable to processes that have them open. A forked child does not remove the folder.
    atexit.register(made.__exit__, None, None, None)
    return made.__enter__()


def _shared_folder(root: Path) -> Path:
    folder = root / f"{_TEMPORARY}{os.getuid()}-{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != 0o700 or not stat.S_ISDIR(status.st_mode):
        raise DataError(f"{folder} is not private to this user: remove it, or set TMPDIR to another folder")
    return folder


def _load_several(
    stores: list[str | Path],
    split: str | None,
    streaming: bool,
    cache_dir: str | Path | None,
    of_folders: dict[str, Any],
) -> "Dataset | DatasetDict | IterableDataset | IterableDatasetDict":
    import datasets

    if len(stores) == 1:
        return load_prepared(stores[0], split, streaming=streaming, cache_dir=cache_dir, **of_folders)
    splits = dict.fromkeys(name for store in stores for name in split_names(store) if split in (None, name))
    if not splits:
        raise DataError(f"no store has a split {split!r}: {', '.join(map(str, stores))}")
    joined = {}
    for name in splits:
        parts = [
            load_prepared(store, name, streaming=streaming, cache_dir=cache_dir, **_for(store, of_folders))
            for store in stores
            if name in split_names(store)
        ]
        features = {column: kind for part in parts for column, kind in part.features.items()}
        labels = [column for column in features if column not in COLUMNS]
        ordered = datasets.Features({column: features[column] for column in (*COLUMNS, *labels) if column in features})
        joined[name] = datasets.concatenate_datasets([_with_columns(part, ordered, streaming) for part in parts])
    if split is not None:
        return joined[split]
    return (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(joined)


def _for(store: str | Path, of_folders: dict[str, Any]) -> dict[str, Any]:
    return of_folders if is_processed_folder(store) else {}


def _with_columns(dataset: "Any", features: "Features", streaming: bool) -> "Any":
    """Return the dataset with null columns for missing labels."""
    missing = [name for name in features if name not in dataset.column_names]
    if not streaming:
        return dataset  # concatenating fills in nulls
    # A stream does not: it would read columns that the files do not have.
    return dataset.map(lambda row: row | dict.fromkeys(missing), features=features) if missing else dataset


def _folder(path: str | Path, root: str | Path | None, labels: str | Path | None) -> FairseqFolder:
    try:
        return FairseqFolder(path, root=root, labels=labels)
    except FairseqFolderError as error:
        raise DataError(str(error)) from error


def _load_folder(
    folder: FairseqFolder, split: str | None, streaming: bool, pairs: bool
) -> "Dataset | DatasetDict | IterableDataset | IterableDatasetDict":
    import datasets

    if split is not None and split not in folder.splits:
        raise DataError(f"{folder.path} has no split {split!r}, only {', '.join(folder.splits)}")
    found = {name: folder_rows(folder, name, pairs) for name in folder.splits if split in (None, name)}
    if unknown := [name for name, rows in found.items() if _no_patient(rows)]:
        logger.warning(
            "%s, %s: no patient is known (meta.csv, column patient_id), so no check can find a patient in two splits; "
            "only recordings are compared",
            folder.path,
            ", ".join(unknown),
        )
    if streaming:
        streams = {name: rows.to_iterable_dataset() for name, rows in found.items()}
        return datasets.IterableDatasetDict(streams) if split is None else streams[split]
    return datasets.DatasetDict(found) if split is None else found[split]


def folder_rows(folder: FairseqFolder, split: str, pairs: bool = False, check: bool = True) -> "Dataset":
    """
    Return a split of a processed folder as rows of a store, in a memory-mapped file for temporary data.

    Args:
        folder: The folder.
        split: The split.
        pairs: Read the CMSC manifest.
        check: Whether a missing segment is an error at once.

    Raises:
        `DataError`: a damaged manifest, a missing segment; the message names file and line.
    """
    from datasets import Dataset, Features, List, Value

    schema = store_schema(() if pairs else folder.label_names)
    features = Features.from_arrow_schema(schema) | {SEGMENT_FILES: List(Value("string")), IDX: Value("string")}
    schema = Features(features).arrow_schema
    handle, path = tempfile.mkstemp(".arrow", dir=private_folder())
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for table in folder.recordings(split, pairs, check):
                writer.write_table(with_schema(table, schema))
    except FairseqFolderError as error:
        raise DataError(str(error)) from error
    # Arrow keeps freed memory for later, a hundred bytes for each line of a manifest.
    pa.default_memory_pool().release_unused()
    dataset = Dataset.from_file(path)
    dataset._fingerprint = hashlib.sha256(f"{folder.digest([split], pairs)} {folder.path}".encode()).hexdigest()[:16]
    return dataset


def _no_patient(rows: "Dataset") -> bool:
    return len(rows) > 0 and rows.data.column("patient_id").null_count == len(rows)


__all__ = [
    "data_digest",
    "folder_rows",
    "is_processed_folder",
    "label_file",
    "load_prepared",
    "local_store",
    "private_folder",
    "split_names",
]
