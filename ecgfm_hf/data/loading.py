"""
From files on disk to a dataset of 🤗 datasets in one call.

`load_*` prepares a store (as `ecgfm prepare`) and opens it. A builder has the same rows, from the same code, in 🤗
datasets' own cache or as a stream: for a look at a few recordings, or one pass over a folder, without a store.
"""

import glob
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from ..utils.resumable_parts import content_digest
from .exclusion import Excluded, exclude
from .opening import load_prepared
from .preparation import PrepareSettings, build_index, prepare, row_of, table_digest
from .sources.arrays import Arrays
from .sources.base import Source
from .sources.code_15 import Code15
from .sources.mimic_iv_ecg import MimicIVECG
from .sources.physionet2021 import PhysioNet2021
from .sources.ptb_xl import PTBXL
from .sources.table import RecordingTable
from .splits import SplitSettings, read_split_csv
from .store import store_schema

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict


_PREPARE = """
        out (`str` or `Path`): The store's folder: written on the first call, resumed after a kill, only opened when it
            is finished.
        split (`str`, *optional*): `"random"`, `"grouped"` (by patient), `"temporal"`, `"grouped_temporal"`; by default
            there is one split, `all`.
        split_csv (`str` or `Path`, *optional*): A published split (`idx, save_file, split`) in place of `split`.
        num_proc (`int`): Processes.
        streaming (`bool`): See [`load_prepared`].
        settings: Others of [`SplitSettings`] (`fractions, counts, seed, assume_independent, drop_nan_leads,
            drop_constant_leads`) and [`PrepareSettings`] (`keep_sources, drop_sources, drop, pseudonymise, salt_file`).

    Returns:
        `DatasetDict`: see [`load_prepared`]. `report.json` in the folder lists what was excluded.
"""
_TABLE_OPTIONS = (
    *("labels", "columns", "binarise", "positive", "negative", "unknown", "encoding", "separator", "sheet", "decimal"),
    *("unlabelled", "sampling_rate", "units", "lead_names", "rename_leads", "leads", "checksums"),
)
_SPLIT_FIELDS = ("fractions", "counts", "seed", "assume_independent", "drop_nan_leads", "drop_constant_leads")


def load_mimic_iv_ecg(
    root: str | os.PathLike,
    out: str | os.PathLike,
    *,
    patients: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
    **settings: Any,
) -> "DatasetDict | IterableDatasetDict":
    """
    MIMIC-IV-ECG.

    Args:
        root (`str` or `Path`): The folder with `record_list.csv`.
        patients, labels: See [`MimicIVECG`]."""
    return _load(MimicIVECG(root, patients=patients, labels=labels), out, **settings)


def load_physionet2021(
    root: str | os.PathLike, out: str | os.PathLike, **settings: Any
) -> "DatasetDict | IterableDatasetDict":
    """
    The training data of the PhysioNet/CinC Challenge 2021.

    Args:
        root (`str` or `Path`): See [`PhysioNet2021`]."""
    return _load(PhysioNet2021(root), out, **settings)


def load_code_15(
    root: str | os.PathLike, out: str | os.PathLike, **settings: Any
) -> "DatasetDict | IterableDatasetDict":
    """
    CODE-15%.

    Args:
        root (`str` or `Path`): The folder with `exams.csv` and `exams_part*.hdf5`."""
    return _load(Code15(root), out, **settings)


def load_ptb_xl(
    root: str | os.PathLike, out: str | os.PathLike, *, split: str | None = "published", **settings: Any
) -> "DatasetDict | IterableDatasetDict":
    """
    PTB-XL, by default with its published split.

    Args:
        root (`str` or `Path`): The folder with `ptbxl_database.csv`.
        statements, likelihood, sampling_rate: See [`PTBXL`]."""
    options = {name: settings.pop(name) for name in ("statements", "likelihood", "sampling_rate") if name in settings}
    return _load(PTBXL(root, **options), out, split=split, **settings)


def load_table(
    root: str | os.PathLike,
    out: str | os.PathLike,
    table: str | os.PathLike | None = None,
    **settings: Any,
) -> "DatasetDict | IterableDatasetDict":
    """
    A folder of your own recordings, with or without a table.

    Args:
        root (`str` or `Path`): The folder.
        table: See [`RecordingTable`], whose other arguments can be given too."""
    options = {name: settings.pop(name) for name in _TABLE_OPTIONS if name in settings}
    return _load(RecordingTable(root, table, **options), out, **settings)


def load_arrays(
    recordings: Iterable[Mapping[str, Any]],
    out: str | os.PathLike,
    labels: Mapping[str, Sequence[Any]] | None = None,
    **settings: Any,
) -> "DatasetDict | IterableDatasetDict":
    """
    Recordings in memory.

    Args:
        recordings, labels: See [`Arrays`]."""
    return _load(Arrays(recordings, labels), out, **settings)


for _function in (load_mimic_iv_ecg, load_physionet2021, load_code_15, load_ptb_xl, load_table, load_arrays):
    _function.__doc__ = (_function.__doc__ or "") + _PREPARE


def _load(
    source: Source,
    out: str | os.PathLike,
    *,
    split: str | None = None,
    split_csv: str | os.PathLike | None = None,
    num_proc: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    streaming: bool = False,
    **settings: Any,
) -> "DatasetDict | IterableDatasetDict":
    how = {name: settings.pop(name) for name in _SPLIT_FIELDS if name in settings}
    if split_csv is not None:
        how["published"] = read_split_csv(split_csv)
        split = split or "imported"
    elif split == "published":
        how["published"], split = source.published_split(), "imported"
    chosen = PrepareSettings(split=SplitSettings(split, **how), **settings)
    prepare(source, out, chosen, num_proc=num_proc, overwrite=overwrite, progress=progress)
    return load_prepared(Path(out), streaming=streaming)


logger = logging.getLogger(__name__)

# Recordings that a process reads at a time; also the shards of a streamed dataset.
_CHUNK = 256


@dataclass
class SourceConfig(datasets.BuilderConfig):
    """What a builder's cache depends on: the folder, the source's options, and the folder's content."""

    root: str | None = None
    options: str | None = None
    content: str | None = None


class SourceBuilder(datasets.GeneratorBasedBuilder):
    """
    A builder over a [`Source`].

    Args:
        root (`str` or `Path`): The dataset's folder.
        cache_dir (`str` or `Path`, *optional*): Of 🤗 datasets.
        options: The source's own arguments.

    `download_and_prepare(num_proc=...)` and `as_dataset()`, or `as_streaming_dataset()`, give the split `train`, which
    contains everything. Recordings that cannot be read are logged and skipped; `excluded()` lists them.
    """

    BUILDER_CONFIG_CLASS = SourceConfig
    source_class: type[Source]

    def __init__(self, root: str | os.PathLike, *, cache_dir: str | os.PathLike | None = None, **options: Any):
        self.source = self.source_class(root, **options)
        self._index = build_index(self.source, PrepareSettings())
        stamps = content_digest(self.source.stamps(self._index.table))
        super().__init__(
            cache_dir=None if cache_dir is None else str(cache_dir),
            dataset_name=self.source.name,
            config_name="default",
            root=str(Path(root).resolve()),
            options=json.dumps(self.source.settings, default=str, sort_keys=True),
            content=table_digest(self._index.table) + stamps,
        )

    def excluded(self) -> list[Excluded]:
        """Return recordings that are not in the cache; while streaming, those excluded before reading."""
        found = list(self._index.excluded)
        for path in sorted(glob.glob(os.path.join(glob.escape(self._output_dir), "excluded-*.jsonl"))):
            with open(path, encoding="utf-8") as file:
                found += [Excluded.from_json(json.loads(line)) for line in file]
        return found

    def _info(self) -> datasets.DatasetInfo:
        features = datasets.Features.from_arrow_schema(store_schema(self.source.label_names))
        return datasets.DatasetInfo(description=f"12-lead ECG recordings from {self.source.name}", features=features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        entries = self._index.table.to_pylist()
        chunks = [entries[start : start + _CHUNK] for start in range(0, len(entries), _CHUNK)]
        # 🤗 datasets shares a list among its processes.
        return [datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"chunks": chunks})]

    def _generate_examples(self, chunks: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, dict]]:
        names = store_schema(self.source.label_names).names
        for chunk in chunks:
            for entry, record in self.source.read(chunk):
                row = record if isinstance(record, Exception) else row_of(self.source, record, entry)
                if isinstance(row, Exception):
                    self._skip(exclude(entry, row, self.source.root))
                else:
                    yield entry["recording_id"], {name: row.get(name) for name in names}

    def _skip(self, one: Excluded) -> None:
        logger.warning("a recording is skipped: %s", one.reason)
        if os.path.isdir(self._output_dir):  # not while streaming
            with open(os.path.join(self._output_dir, f"excluded-{os.getpid()}.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one)) + "\n")


class MimicIVECGBuilder(SourceBuilder):
    """A builder over [`MimicIVECG`]: its arguments, and `cache_dir` of 🤗 datasets."""

    source_class = MimicIVECG


class PhysioNet2021Builder(SourceBuilder):
    """A builder over [`PhysioNet2021`]: its arguments, and `cache_dir` of 🤗 datasets."""

    source_class = PhysioNet2021


class Code15Builder(SourceBuilder):
    """A builder over [`Code15`]: its arguments, and `cache_dir` of 🤗 datasets."""

    source_class = Code15


class PTBXLBuilder(SourceBuilder):
    """A builder over [`PTBXL`]: its arguments, and `cache_dir` of 🤗 datasets."""

    source_class = PTBXL


class RecordingTableBuilder(SourceBuilder):
    """A builder over [`RecordingTable`]: its arguments, and `cache_dir` of 🤗 datasets."""

    source_class = RecordingTable
