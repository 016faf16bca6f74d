"""Many reports: a table of labels, in several processes, without reading a report twice."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import islice

from .labeler import Labeler, check_keep

# Machine reports come again word for word; long free text does not, and would fill the memory.
REMEMBERED, LONGEST_REMEMBERED = 65536, 2000
_CHUNK = 2000

_read = None  # In a worker process: its labeler, ready to read reports.


def label_reports(
    labeler: Labeler,
    reports: Iterable[str],
    *,
    keep: str | float = "any",
    soft: bool = False,
    processes: int = 1,
    cache: bool = True,
    unmatched: Counter[str] | None = None,
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
        unmatched: counts, report by report, the statements that no phrase accounts for (see `Labeler.unmatched`).

    Returns:
        an iterator over lists of 0 and 1, or of probabilities where `soft`.

    Raises:
        ValueError: `keep` or `processes` is out of range.
    """
    check_keep(keep)
    if processes < 1:
        raise ValueError(f"processes must be at least 1, found: {processes}")
    return _in_order((labeler, keep, soft, cache, unmatched is not None), reports, processes, unmatched)


def _in_order(
    settings: tuple, reports: Iterable[str], processes: int, unmatched: Counter[str] | None
) -> Iterator[list]:
    for row, statements in _answers(settings, reports, processes):
        if statements:
            unmatched.update(statements)
        yield list(row)  # A copy of what the cache keeps: a caller may change its row.


def _answers(settings: tuple, reports: Iterable[str], processes: int) -> Iterator[tuple[list, list[str]]]:
    if processes == 1:
        yield from map(_reader(*settings), reports)
        return
    with ProcessPoolExecutor(processes, initializer=_start, initargs=settings) as pool:
        remaining = iter(reports)
        # A few chunks a process at a time: a table of a million reports never waits in memory as a whole.
        while block := list(islice(remaining, _CHUNK * processes * 4)):
            chunks = [block[start : start + _CHUNK] for start in range(0, len(block), _CHUNK)]
            for answers in pool.map(_read_all, chunks):
                yield from answers


def join_lines(lines: Sequence[object]) -> str:
    """
    One report from the columns `report_0`, `report_1`, ... of MIMIC-IV-ECG: joined by "; ", without the empty ones.

    Source: what fairseq-signals' record step does.
    """
    statements = (part.strip() for line in lines if isinstance(line, str) for part in line.split(";"))
    return "; ".join(part for part in statements if part)


def _reader(
    labeler: Labeler, keep: str | float, soft: bool, cache: bool, with_unmatched: bool
) -> Callable[[str], tuple[list, list[str]]]:
    """From a report to its row and what of it is unmatched."""

    def read(report: str) -> tuple[list, list[str]]:
        found = labeler(report)
        return labeler.row_of(found, keep, soft), found.unmatched_statements if with_unmatched else []

    if not cache:
        return read
    remembered = lru_cache(maxsize=REMEMBERED)(read)

    def recall(report: str) -> tuple[list, list[str]]:
        is_short = isinstance(report, str) and len(report) <= LONGEST_REMEMBERED
        return remembered(report) if is_short else read(report)

    return recall


def _start(*settings: object) -> None:
    global _read
    _read = _reader(*settings)


def _read_all(reports: list[str]) -> list[tuple[list, list[str]]]:
    return [_read(report) for report in reports]
