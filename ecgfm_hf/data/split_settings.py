"""How a store is split, and which recordings are left out before."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from .published_splits import import_split
from .splits import STRATEGIES, SplitError, SplitResult, check_split_names, split_recordings
from .store import UNSPLIT


@dataclass(frozen=True)
class SplitSettings:
    """
    How recordings are split, and which are left out before.

    Args:
        strategy (`str`, *optional*): One of `STRATEGIES`, `"imported"`, or None: a single split `all`.
        fractions (mapping of `str` to `float`, *optional*): See [`split_recordings`], as `counts` and `seed`.
        assume_independent (`bool`): Recordings of unknown patients are taken to be of one patient each.
        published (mapping of `str` to `str`, *optional*): For `"imported"`, the result of [`read_split_csv`].
        drop_nan_leads, drop_constant_leads (`bool`): Leave out recordings with such a lead.
    """

    strategy: str | None = None
    fractions: Mapping[str, float] | None = None
    counts: Mapping[str, int | None] | None = None
    seed: int = 0
    assume_independent: bool = False
    published: Mapping[str, str] | None = None
    drop_nan_leads: bool = False
    drop_constant_leads: bool = False

    def __post_init__(self):
        if self.strategy not in (None, "imported", *STRATEGIES):
            raise SplitError(f"strategy must be one of {', '.join(STRATEGIES)}, found: {self.strategy!r}")
        if (self.strategy == "imported") != (self.published is not None):
            raise SplitError("a published split and the strategy 'imported' belong together")
        check_split_names([*(self.fractions or ()), *(self.counts or ())])

    @property
    def filters(self) -> dict[str, bool]:
        """Which filters are on."""
        return {"drop_nan_leads": self.drop_nan_leads, "drop_constant_leads": self.drop_constant_leads}

    def to_json(self) -> dict[str, Any]:
        """Names and values for the report; of a published split only how many recordings it names."""
        content = asdict(self)
        if self.published is not None:
            content["published"] = f"{len(self.published)} recordings"
        return content

    def check(self, index: pa.Table, published: Mapping[str, str] | None = None) -> None:
        """Rehearses the split on what is known before reading, so that hours of work do not end at its errors."""
        if self.strategy is None or not index.num_rows:
            return
        columns = index.column_names
        if "temporal" in self.strategy and "time" not in columns:
            return  # perhaps the files say it
        names = [name for name in ("recording_id", "patient_id", "time") if name in columns]
        self.apply({name: index[name].to_pylist() for name in names}, published)

    def apply(self, facts: Mapping[str, list], published: Mapping[str, str] | None = None) -> SplitResult:
        """The split of recordings with these `recording_id`, `patient_id` and `time`."""
        ids, patients = facts["recording_id"], facts.get("patient_id") or [None] * len(facts["recording_id"])
        if self.strategy == "imported":
            table = published if published is not None else self.published
            return import_split(table, ids, patients=patients, exact_ids=True)
        if self.strategy is None:
            known = len({patient for patient in patients if patient is not None})
            return SplitResult(tuple(ids), (UNSPLIT,) * len(ids), (UNSPLIT,), "none", patients={UNSPLIT: known})
        return split_recordings(
            ids,
            self.strategy,
            fractions=self.fractions,
            counts=self.counts,
            seed=self.seed,
            patients=patients,
            times=facts.get("time"),
            assume_independent=self.assume_independent,
            exact_ids=True,
        )
