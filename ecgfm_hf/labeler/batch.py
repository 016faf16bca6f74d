"""Many reports: the rows of a table of labels, in several processes, each different report read once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from .labeler import Labeler, check_keep

# Machine reports are often repeated word for word; long free text is not, and would fill the memory.
REMEMBERED, LONGEST_REMEMBERED = 65536, 2000
_CHUNK = 2000

_Settings = tuple[Labeler, str | float, bool, bool]


class ReportRow(NamedTuple):
    """
    A report in a table of labels.

    Attributes:
        values: 0 and 1 by label, or probabilities.
        status: as of [`ReportLabels`]; except for `"labelled"` the values are unknown, not negative.
        unmatched: the statements that no phrase accounts for (see `Labeler.unmatched`).
    """

    values: list[int] | list[float]
    status: str
    unmatched: list[str]


def label_reports(
    labeler: Labeler,
    reports: Iterable[str | None],
    *,
    keep: str | float = "any",
    soft: bool = False,
    processes: int = 1,
    cache: bool = True,
) -> Iterator[ReportRow]:
    """
    Label many reports, in their order.

    Reports are independent of each other, so neither processes nor the cache of repeated reports change a row. (Lines
    are not cached: descriptors, the connective gate and the cut reach over them.)

    Args:
        labeler: its `labels` are the columns.
        reports: texts; one that is no string (None, NaN) has no labels and the status `"empty"`.
        keep, soft: as for `Labeler.row`.
        processes: how many; with 1, in this one.
        cache: keep the rows of up to 65,536 different reports of up to 2,000 characters.

    Returns:
        An iterator over a [`ReportRow`] a report.

    Raises:
        ValueError: `keep` or `processes` is out of range.
    """
    check_keep(keep)
    if processes < 1:
        raise ValueError(f"processes must be at least 1, found: {processes}")
    return _rows((labeler, keep, soft, cache), reports, processes)


def _rows(settings: _Settings, reports: Iterable[str | None], processes: int) -> Iterator[ReportRow]:
    if processes == 1:
        for row in map(_reader(*settings), reports):
            yield row._replace(values=list(row.values))  # The cache keeps the row, and a caller may change it.
        return
    with ProcessPoolExecutor(processes, initializer=_start_worker, initargs=settings) as pool:
        remaining = iter(reports)
        # A few chunks a process at a time: a table of a million reports never waits in memory as a whole.
        while block := list(islice(remaining, _CHUNK * processes * 4)):
            chunks = [block[start : start + _CHUNK] for start in range(0, len(block), _CHUNK)]
            for rows in pool.map(_read_all, chunks):
                yield from rows


def join_lines(lines: Sequence[object]) -> str:  # cells of any type; only texts count
    """
    Join the columns `report_0`, `report_1`, ... of MIMIC-IV-ECG to one report: by "; ", without the empty ones.

    As in fairseq-signals' record step.
    """
    statements = (part.strip() for line in lines if isinstance(line, str) for part in line.split(";"))
    return "; ".join(part for part in statements if part)


def _reader(labeler: Labeler, keep: str | float, soft: bool, cache: bool) -> Callable[[str | None], ReportRow]:
    """Return the function from a report to its row."""

    def read(report: str | None) -> ReportRow:
        found = labeler(report)
        return ReportRow(labeler.row_of(found, keep, soft), found.status, found.unmatched_statements)

    if not cache:
        return read
    remembered = lru_cache(maxsize=REMEMBERED)(read)

    def recall(report: str | None) -> ReportRow:
        is_short = isinstance(report, str) and len(report) <= LONGEST_REMEMBERED
        return remembered(report) if is_short else read(report)

    return recall


# In a worker process: the function that reads reports.
_read: Callable[[str | None], ReportRow] | None = None


def _start_worker(*settings: Any) -> None:
    global _read
    _read = _reader(*settings)


def _read_all(reports: list[str | None]) -> list[ReportRow]:
    assert _read is not None  # set when the process started
    return [_read(report) for report in reports]
