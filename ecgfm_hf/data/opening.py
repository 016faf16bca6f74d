"""
Open data: stores that `ecgfm prepare` wrote and processed folders of fairseq-signals, as datasets of the same rows.

Whatever reads recordings by split opens them here.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..fairseq.folder_reading import IDX, SEGMENT_FILES, FairseqFolder, is_fairseq_folder
from ..fairseq.manifests import FairseqFolderError
from ..records.store_rows import COLUMNS
from ..utils.files import private_folder
from ..utils.text import without_secrets
from .remote_stores import is_address, local_store
from .splits import UNSPLIT
from .store import (
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
        store (`str` or `Path`, or a sequence of them): Also an address of fsspec, such as `s3://bucket/store`, whose
            Parquet files are fetched one by one, each when its rows are read. Several with different labels give all
            labels; a label that one does not have is None (unknown) there, never 0.
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
    folder, shown = local_store(store), without_secrets(os.fspath(store))
    if is_processed_folder(folder):
        return _load_folder(_folder(folder, root, labels), split, streaming, pairs)
    if root is not None:
        raise DataError(f"root={root} names the segments of a processed folder, but {shown} is none: leave it out")
    from datasets.exceptions import DatasetGenerationError

    from .store_builder import StoreBuilder

    files = store_files(folder)
    if split is not None and split not in files:
        raise DataError(f"{shown} has no split {split!r}, only {', '.join(files)}")
    wanted = {name: paths for name, paths in files.items() if split in (None, name)}
    paths = [path for found in wanted.values() for path in found]
    content = content_digest(paths)
    # 🤗 datasets reserves the name `all`.
    their_name = {name: "train" if name == UNSPLIT else name for name in files}
    builder = StoreBuilder(
        data_files={their_name[name]: [str(path) for path in found] for name, found in wanted.items()},
        cache_dir=str(Path(private_folder() if cache_dir is None else cache_dir) / content[:16]),
    )
    builder.address = os.fspath(store) if is_address(store) else None
    their_split = None if split is None else their_name[split]
    data: Any  # of four kinds
    if streaming:
        check_footers(folder, paths)
        data = builder.as_streaming_dataset(split=their_split)
    else:
        if builder.address is None and not os.path.isdir(builder.cache_dir):
            check_files(folder, paths)  # all before the first is copied
        try:
            builder.download_and_prepare()
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, DataError):
                raise error.__cause__ from None
            raise DataError(
                f"{shown} cannot be copied for reading in any order (is the disk full?): {error.__cause__ or error}"
            ) from error
        data = builder.as_dataset(split=their_split)
        # 🤗 datasets goes by files' names and times, which a changed file may share with the one before.
        for name, dataset in {"": data}.items() if split is not None else data.items():
            dataset._fingerprint = hashlib.sha256(f"{content} {name or split}".encode()).hexdigest()[:16]
    if split is not None or UNSPLIT not in files:
        return data
    return type(data)({UNSPLIT: data["train"]})


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
        raise DataError(f"no store has a split {split!r}: {', '.join(without_secrets(str(store)) for store in stores)}")
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
    "split_names",
]
