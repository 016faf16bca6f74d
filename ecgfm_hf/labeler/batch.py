"""Many reports: a table of labels, in several processes, without reading a report twice."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import islice

from .labeler import Labeler, check_keep

# Machine reports come again word for word; long free text does not, and would fill the memory.
REMEMBERED, LONGEST_REMEMBERED = 65536, 2000
_CHUNK = 2000

_row_of = None  # In a worker process: its labeler, ready to give rows.


def label_reports(
    labeler: Labeler,
    reports: Iterable[str],
    *,
    keep: str | float = "any",
    soft: bool = False,
    processes: int = 1,
    cache: bool = True,
) -> Iterator[list[int] | list[float]]:
    """
    The rows of many reports, in their order.

    Reports are independent of one another, so neither processes nor the cache of repeated reports change a row. (Lines
    are not cached: descriptors, the connective gate and the cut reach over them.)

    Args:
        labeler: whose `labels` are the columns.
        reports: texts; what is no string (None, NaN) has no labels.
        keep, soft: as for `Labeler.row`.
        processes: how many; with 1, in this one.
        cache: keep the rows of up to 65,536 different reports of up to 2,000 characters.

    Returns:
        an iterator over lists of 0 and 1, or of probabilities where `soft`.

    Raises:
        ValueError: `keep` or `processes` is out of range.
    """
    check_keep(keep)
    if processes < 1:
        raise ValueError(f"processes must be at least 1, found: {processes}")
    settings = (labeler, keep, soft, cache)
    return _in_order(settings, reports, processes)


def _in_order(settings: tuple, reports: Iterable[str], processes: int) -> Iterator[list]:
    if processes == 1:
        row_of = _reader(*settings)
        for report in reports:
            yield row_of(report)
        return
    with ProcessPoolExecutor(processes, initializer=_start, initargs=settings) as pool:
        remaining = iter(reports)
        # A few chunks a process at a time: a table of a million reports never waits in memory as a whole.
        while block := list(islice(remaining, _CHUNK * processes * 4)):
            chunks = [block[start : start + _CHUNK] for start in range(0, len(block), _CHUNK)]
            for rows in pool.map(_rows, chunks):
                yield from rows


def join_lines(lines: Sequence[object]) -> str:
    """
    One report from the columns `report_0`, `report_1`, ... of MIMIC-IV-ECG: joined by "; ", without the empty ones.

    Source: what fairseq-signals' record step does.
    """
    statements = (part.strip() for line in lines if isinstance(line, str) for part in line.split(";"))
    return "; ".join(part for part in statements if part)


def _reader(labeler: Labeler, keep: str | float, soft: bool, cache: bool):
    def read(report: str) -> list:
        return labeler.row(report, keep, soft)

    if not cache:
        return read
    remembered = lru_cache(maxsize=REMEMBERED)(read)

    def row_of(report: str) -> list:
        if isinstance(report, str) and len(report) <= LONGEST_REMEMBERED:
            return list(remembered(report))  # A copy: a caller may change its row.
        return read(report)

    return row_of


def _start(*settings: object) -> None:
    global _row_of
    _row_of = _reader(*settings)


def _rows(reports: list[str]) -> list[list]:
    return [_row_of(report) for report in reports]
