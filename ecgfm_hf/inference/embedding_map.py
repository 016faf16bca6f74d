"""A map of embeddings: their first two principal components, coloured by a label."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..utils.files import atomic_path
from ..utils.text import from_cell
from .recording_inputs import is_store

# In the metadata of a map, by which an earlier one is recognised.
MAP_MARK = "ecgfm-hf embed-map"
_PICTURES = (".png", ".pdf", ".svg")
_MOST_CATEGORIES = 10
_UNKNOWN, _OTHER = "unknown", "other"
# From Okabe and Ito's palette, which colour-blind readers can distinguish; a label's 1 has the warm colour.
_NEGATIVE, _POSITIVE, _GREY = "#0072B2", "#D55E00", "#BBBBBB"


def principal_components(embeddings: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the coordinates of embeddings along the directions in which they vary most.

    Args:
        embeddings (`np.ndarray` of shape (n, size)): At least two.
        count: Number of directions.

    Returns:
        Coordinates (n, count) float64, and each direction's share of the variance, (count,). The sign of a direction
        makes its largest entry positive.

    Raises:
        `ValueError`: fewer than two embeddings, only equal embeddings, or values that are not finite.
    """
    if len(embeddings) < 2:
        raise ValueError(f"a map needs at least 2 embeddings, found: {len(embeddings)}")
    if not np.isfinite(embeddings).all():
        raise ValueError("not all embeddings are finite")
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    # The covariance is size x size for any number of embeddings.
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    if not variances[-1] > 0:
        raise ValueError("all embeddings are equal")
    directions = directions[:, ::-1][:, :count]
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    return centred @ directions, variances[::-1][:count] / variances.sum()


def draw_embedding_map(
    embeddings: str | os.PathLike,
    output: str | os.PathLike,
    *,
    labels: str | os.PathLike | None = None,
    label: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> str:
    """
    Draw the first two principal components of embeddings.

    Args:
        embeddings: A Parquet file that `ecgfm embed` wrote, of recordings or segments.
        output: The picture: `.png`, `.pdf` or `.svg`.
        labels: CSV or Parquet with a column `recording_id` or `path`, or a store. Without it all points have one
            colour.
        label: The column to colour by; needed if there are several. More than 10 different numbers get a colour bar;
            0, 1 and names get one colour each; recordings without a value are grey.
        columns (mapping, *optional*): The table's names for `recording_id` or `path`, such as `{"path": "file"}`.

    Returns:
        `str`: a summary of what was drawn.

    Raises:
        `ValueError`: another kind of file, no such column, nothing to draw.
        `ImportError`: matplotlib is missing.
        `OSError`: a file that cannot be read or written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'ecgfm-hf[plots]'") from error

    if Path(output).suffix.lower() not in _PICTURES:
        raise ValueError(f"a picture must end in {', '.join(_PICTURES)}, found: {os.fspath(output)}")
    ids, vectors = _read_embeddings(embeddings)
    name, values = ("", None) if labels is None else _read_label(labels, label, columns or {})
    if labels is not None and values is not None and not values.keys() & set(ids):
        raise ValueError(
            f"{os.fspath(labels)} has none of the recordings of {os.fspath(embeddings)}: its ids look like "
            f"{next(iter(values), 'none')}, ids of the embeddings look like {next(iter(ids), 'none')}"
        )
    coordinates, shares = principal_components(vectors)

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    # In random order, so that no group covers the others.
    order = np.random.default_rng(0).permutation(len(ids))
    style: dict[str, Any] = {
        "s": float(np.clip(8000 / len(ids), 3, 30)),
        "alpha": 0.7,
        "linewidths": 0,
        "rasterized": len(ids) > 2000,
    }
    x, y = coordinates[order].T
    if values is None:
        axes.scatter(x, y, color=_NEGATIVE, **style)
    else:
        _scatter_by(figure, axes, x, y, [values.get(ids[row]) for row in order], name, style)
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({shares[1]:.0%} of the variance)")
    axes.set_title(f"{len(ids):,} embeddings" + ("" if values is None else f" by {_plain(name)}"))
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    suffix = Path(output).suffix.lower()
    mark = {"Software" if suffix == ".png" else "Creator": MAP_MARK}
    with atomic_path(output) as scratch:
        figure.savefig(scratch, format=suffix[1:], dpi=150, metadata=mark)
    known = "" if values is None else f", {sum(values.get(one) is not None for one in ids):,} with a value of {name}"
    return f"{len(ids):,} embeddings{known}: {os.fspath(output)}"


def _scatter_by(figure: Any, axes: Any, x: np.ndarray, y: np.ndarray, values: list, name: str, style: dict) -> None:
    known = np.array([value is not None for value in values])
    distinct = {value for value in values if value is not None}
    if len(distinct) > _MOST_CATEGORIES and all(isinstance(value, int | float) for value in distinct):
        numbers = np.array([value for value in values if value is not None], dtype=np.float64)
        unknown = axes.scatter(x[~known], y[~known], color=_GREY, **style)
        points = axes.scatter(x[known], y[known], c=numbers, cmap="viridis", **style)
        bar = figure.colorbar(points, ax=axes, label=_plain(name))
        bar.solids.set_alpha(1)
        if not known.all():
            axes.legend([unknown], [f"{_UNKNOWN} ({(~known).sum():,})"], frameon=False, loc="best", markerscale=2)
        return
    names = _categories(values)
    shown = np.array(names)
    handles = []
    for number, category in enumerate(sorted(set(names), key=lambda name: (name in (_OTHER, _UNKNOWN), name))):
        chosen = shown == category
        # The rarest are drawn on top, unknown ones at the bottom.
        height = 0.0 if category == _UNKNOWN else 2 - chosen.mean()
        points = axes.scatter(x[chosen], y[chosen], color=_colour(category, number), zorder=height, **style)
        handles.append((points, f"{_plain(category)} ({chosen.sum():,})"))
    legend = axes.legend(*zip(*handles, strict=True), title=_plain(name), frameon=False, loc="best", markerscale=2)
    for handle in legend.legend_handles:
        handle.set_alpha(1)


def _plain(text: str) -> str:
    """Escape dollar signs, which would begin a formula."""
    return text.replace("$", r"\$")


def _categories(values: list) -> list[str]:
    """Return the category of each value; of many categories, the rarest become one."""
    names = [
        _UNKNOWN if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in values
    ]
    found, counts = np.unique([one for one in names if one != _UNKNOWN], return_counts=True)
    if len(found) <= _MOST_CATEGORIES:
        return names
    kept = set(found[np.argsort(-counts, kind="stable")][: _MOST_CATEGORIES - 1].tolist()) | {_UNKNOWN}
    return [one if one in kept else _OTHER for one in names]


def _colour(category: str, number: int) -> Any:
    from matplotlib import colormaps

    fixed = {"0": _NEGATIVE, "1": _POSITIVE, _UNKNOWN: _GREY, _OTHER: "#777777"}
    return fixed.get(category) or colormaps["tab10"](number % 10)


def _read_embeddings(path: str | os.PathLike) -> tuple[list[str], np.ndarray]:
    """Return recording ids (n) and embeddings (n, size) float32."""
    table = _read_parquet(path)
    if not {"recording_id", "embedding"} <= set(table.column_names):
        raise ValueError(
            f"{os.fspath(path)} has no columns recording_id and embedding: `ecgfm embed` writes such files"
        )
    column = table["embedding"].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        raise ValueError(f"{os.fspath(path)}: embeddings must be lists of one size, found: {column.type}")
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return table["recording_id"].to_pylist(), vectors.astype(np.float32, copy=False)


def _read_label(path: str | os.PathLike, label: str | None, renamed: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Return the label's name, and its values by recording; None where unknown."""
    path = Path(path)
    if is_store(str(path)):
        from ..data.store import COLUMNS, check_files, store_files

        files = [file for found in store_files(path).values() for file in found]
        check_files(path, files)
        columns = pq.read_schema(files[0]).names
        label = _chosen(path, [name for name in columns if name not in COLUMNS], columns, label)
        table = pa.concat_tables([pq.read_table(file, columns=["recording_id", label]) for file in files])
    else:
        from ..data.sources.table import recording_id_of

        id_column, path_column = (renamed.get(name, name) for name in ("recording_id", "path"))
        # Ids such as 007 must remain text.
        as_text = pyarrow.csv.ConvertOptions(column_types={id_column: pa.string(), path_column: pa.string()})
        try:
            table = (
                _read_parquet(path)
                if path.suffix == ".parquet"
                else pyarrow.csv.read_csv(path, convert_options=as_text)
            )
        except pa.ArrowException as error:
            raise ValueError(f"{path} is not a CSV or Parquet table: {error}") from None
        columns = table.column_names
        if not {id_column, path_column} & set(columns):
            raise ValueError(
                f"{path} has no column {id_column} or {path_column} (found: {', '.join(columns)}); columns= names "
                "the columns that contain them"
            )
        label = _chosen(path, [name for name in columns if name not in (id_column, path_column)], columns, label)
        if id_column not in columns:
            # The recording ids follow from the paths.
            table = table.append_column(
                id_column, pa.array([recording_id_of(str(value)) for value in table[path_column].to_pylist()])
            )
        table = table.select([id_column, label]).rename_columns(["recording_id", label])
    ids = [value and from_cell(value) for value in table["recording_id"].cast(pa.string()).to_pylist()]
    values: dict[str, Any] = {}
    for recording, value in zip(ids, table[label].to_pylist(), strict=True):
        value = None if value == "" or value != value else value
        if values.setdefault(recording, value) != value:
            raise ValueError(
                f"{path}: recording {recording} has two values of {label}, {values[recording]} and {value}"
            )
    return label, values


def _chosen(path: Path, free: list[str], columns: list[str], label: str | None) -> str:
    if label is None and len(free) == 1:
        return free[0]
    if label is None or label not in columns:
        wanted = "label= must name one of the columns" if label is None else f"there is no column {label}"
        raise ValueError(f"{path}: {wanted} (found: {', '.join(free)})")
    return label


def _read_parquet(path: str | os.PathLike) -> pa.Table:
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{os.fspath(path)} is not a Parquet file: {error}") from None


__all__ = ["draw_embedding_map", "principal_components"]
