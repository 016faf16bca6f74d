"""`load_*`: from files on disk to a dataset in one call. The same as `ecgfm prepare`, then [`load_prepared`]."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .preparation import PrepareSettings, prepare
from .published_splits import read_split_csv
from .sources.arrays import Arrays
from .sources.base import Source
from .sources.table import RecordingTable
from .split_settings import SplitSettings
from .store import load_prepared

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

_PREPARE = """
        out (`str` or `Path`): The store's folder: written on the first call, gone on with after a kill, only opened
            when it is finished.
        split (`str`, *optional*): `"random"`, `"grouped"` (by patient), `"temporal"`, `"grouped_temporal"`; by default
            there is one split, `all`.
        split_csv (`str` or `Path`, *optional*): A published split (`idx, save_file, split`) in place of `split`.
        num_proc (`int`): Processes.
        streaming (`bool`): See [`load_prepared`].
        settings: Others of [`SplitSettings`] (`fractions, counts, seed, assume_independent, drop_nan_leads,
            drop_constant_leads`) and [`PrepareSettings`] (`keep_sources, drop_sources, drop, pseudonymise, salt_file`).

    Returns:
        `DatasetDict`: see [`load_prepared`]. `report.json` in the folder says what was left out.
"""
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
    from .sources.mimic_iv_ecg import MimicIVECG

    return _load(MimicIVECG(root, patients=patients, labels=labels), out, **settings)


def load_physionet2021(
    root: str | os.PathLike, out: str | os.PathLike, **settings: Any
) -> "DatasetDict | IterableDatasetDict":
    """
    The training data of the PhysioNet/CinC Challenge 2021.

    Args:
        root (`str` or `Path`): See [`PhysioNet2021`]."""
    from .sources.physionet2021 import PhysioNet2021

    return _load(PhysioNet2021(root), out, **settings)


def load_code_15(
    root: str | os.PathLike, out: str | os.PathLike, **settings: Any
) -> "DatasetDict | IterableDatasetDict":
    """
    CODE-15%.

    Args:
        root (`str` or `Path`): The folder with `exams.csv` and `exams_part*.hdf5`."""
    from .sources.code_15 import Code15

    return _load(Code15(root), out, **settings)


def load_table(
    root: str | os.PathLike,
    out: str | os.PathLike,
    table: str | os.PathLike | None = None,
    *,
    labels: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    sampling_rate: float | None = None,
    units: str | None = None,
    lead_names: Sequence[str] | None = None,
    **settings: Any,
) -> "DatasetDict | IterableDatasetDict":
    """
    A folder of recordings of one's own, with or without a table.

    Args:
        root (`str` or `Path`): The folder.
        table, labels, columns, sampling_rate, units, lead_names: See [`RecordingTable`]."""
    source = RecordingTable(
        root, table, labels=labels, columns=columns, sampling_rate=sampling_rate, units=units, lead_names=lead_names
    )
    return _load(source, out, **settings)


def load_arrays(
    recordings: Iterable[Mapping[str, Any]],
    out: str | os.PathLike,
    labels: Mapping[str, Sequence[Any]] | None = None,
    **settings: Any,
) -> "DatasetDict | IterableDatasetDict":
    """
    Recordings that are in memory.

    Args:
        recordings, labels: See [`Arrays`]."""
    return _load(Arrays(recordings, labels), out, **settings)


for _function in (load_mimic_iv_ecg, load_physionet2021, load_code_15, load_table, load_arrays):
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
    chosen = PrepareSettings(split=SplitSettings(split, **how), **settings)
    prepare(source, out, chosen, num_proc=num_proc, overwrite=overwrite, progress=progress)
    return load_prepared(out, streaming=streaming)
