"""Any number of recordings without a file: what a source has to do, and no more."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ecgfm_hf.data import Source, SourceIndex
from ecgfm_hf.data.sources.physionet2021 import scored_classes
from ecgfm_hf.records import ECGRecord
from ecgfm_hf.synthetic import SyntheticCohort


class MadeRecordings(Source):
    """
    Recordings of 10 s at 500 Hz, of the noise and size of real ones: some of the synthetic cohort, each turned in time
    by an amount of its own. Three a patient, with ids, paths, ages, reports and 26 labels, as large a table as any.
    """

    name = "synthetic"
    label_names = scored_classes()

    def __init__(self, count: int):
        self.count = count

    @cached_property
    def _patterns(self) -> list:
        return list(SyntheticCohort(20, seed=3))

    def index(self) -> SourceIndex:
        numbers = np.arange(self.count)
        names = [f"S{number:08d}" for number in numbers]
        columns: dict[str, Any] = {"recording_id": names, "path": [f"files/{n[:4]}/{n}/{n}.hea" for n in names]}
        columns["patient_id"] = [f"P{number // 3:07d}" for number in numbers]
        columns["age"] = pa.array(numbers % 90, pa.float32())
        columns["report"] = ["Synthetic: sinus rhythm; normal ECG; recorded from nobody."] * self.count
        columns |= {name: pa.array(numbers % (k + 2) == 0).cast(pa.int8()) for k, name in enumerate(self.label_names)}
        return SourceIndex(pa.table(columns))

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        number = int(entry["recording_id"][1:])
        pattern = self._patterns[number % len(self._patterns)]
        return ECGRecord(
            recording_id=entry["recording_id"],
            path=entry["path"],
            samples=np.roll(pattern.samples, number % 5000, axis=1),
            gain=np.full(12, 1000.0),
            baseline=np.zeros(12),
            units=("mV",) * 12,
            sampling_rate=500.0,
            lead_names=pattern.lead_names,
        )
