"""
The datasets as builders of 🤗 datasets, for its own cache and for streaming straight from the files.

The way to a dataset that is split, accounted for and read again for years is [`prepare`] (`load_*`, `ecgfm prepare`).
A builder has the same rows, from the same code, in one split that 🤗 datasets calls `train`, where one wants no store:
a look at a few recordings, a pass over a folder.
"""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets

from .parts import left_out_of, row_of
from .preparation import PrepareSettings, build_index, index_digest
from .sources.base import LeftOut, Source
from .sources.code_15 import Code15
from .sources.mimic_iv_ecg import MimicIVECG
from .sources.physionet2021 import PhysioNet2021
from .sources.table import RecordingTable
from .store import store_schema

logger = logging.getLogger(__name__)

# Recordings that a process takes at a time; also the shards of a streamed dataset.
_TOGETHER = 256


@dataclass
class SourceConfig(datasets.BuilderConfig):
    """What a builder's cache depends on: the folder, the source's options, and what was found in the folder."""

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
    is everything. Recordings that cannot be read are logged and passed over; `left_out()` lists them.
    """

    BUILDER_CONFIG_CLASS = SourceConfig
    source_class: type[Source]

    def __init__(self, root: str | os.PathLike, *, cache_dir: str | os.PathLike | None = None, **options: Any):
        self.source = self.source_class(root, **options)
        self._index = build_index(self.source, PrepareSettings())
        super().__init__(
            cache_dir=None if cache_dir is None else str(cache_dir),
            dataset_name=self.source.name,
            config_name="default",
            root=str(Path(root).resolve()),
            options=json.dumps(self.source.settings, default=str, sort_keys=True),
            content=index_digest(self._index.table, hashlib.sha256()).hexdigest(),
        )

    def left_out(self) -> list[LeftOut]:
        """Recordings that did not make it into the cache (while streaming: those known before reading)."""
        found = list(self._index.left_out)
        for path in sorted(glob.glob(os.path.join(glob.escape(self._output_dir), "left_out-*.jsonl"))):
            with open(path, encoding="utf-8") as file:
                found += [LeftOut(**json.loads(line)) for line in file]
        return found

    def _info(self) -> datasets.DatasetInfo:
        features = datasets.Features.from_arrow_schema(store_schema(self.source.label_names))
        return datasets.DatasetInfo(description=f"12-lead ECG recordings from {self.source.name}", features=features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        entries = self._index.table.to_pylist()
        chunks = [entries[start : start + _TOGETHER] for start in range(0, len(entries), _TOGETHER)]
        # 🤗 datasets shares a list among its processes.
        return [datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"chunks": chunks})]

    def _generate_examples(self, chunks: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, dict]]:
        names = store_schema(self.source.label_names).names
        for chunk in chunks:
            for entry, record in self.source.read(chunk):
                row = record if isinstance(record, Exception) else row_of(self.source, record, entry)
                if isinstance(row, Exception):
                    self._pass_over(left_out_of(entry, row, self.source))
                else:
                    yield entry["recording_id"], {name: row.get(name) for name in names}

    def _pass_over(self, one: LeftOut) -> None:
        logger.warning("a recording is left out: %s", one.reason)
        if os.path.isdir(self._output_dir):  # not while streaming
            with open(os.path.join(self._output_dir, f"left_out-{os.getpid()}.jsonl"), "a", encoding="utf-8") as file:
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


class RecordingTableBuilder(SourceBuilder):
    """A builder over [`RecordingTable`]: its arguments, and `cache_dir` of 🤗 datasets."""

    source_class = RecordingTable
