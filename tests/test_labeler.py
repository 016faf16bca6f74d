"""The engine, given the original's tables, against the original's output."""

import csv
import json
import os
from pathlib import Path

import pytest

from ecgfm_hf.labeler import Labeler

FIXTURES = Path(__file__).parent / "fixtures" / "labeler"
SHARED = Path(os.environ.get("ECGFM_SHARED", Path(__file__).parents[2] / "shared")) / "labeler"
needs_shared = pytest.mark.skipif(
    not (SHARED / "golden_reports.csv").is_file(), reason=f"needs the reference reports in {SHARED} (set ECGFM_SHARED)"
)


def read(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@needs_shared
@pytest.mark.parametrize("name", ["golden", "edge"])
@pytest.mark.parametrize(
    ("variant", "switches"),
    [
        ("reports", {}),
        ("variant_A", {"connective_gate": False}),
        ("variant_AB", {"connective_gate": False, "honour_absence": True}),
    ],
)
def test_engine_with_the_original_tables_gives_all_its_labels_and_probabilities(name, variant, switches):
    labeler = Labeler.from_original(SHARED / "original_json", **switches)
    for reference, report in zip(
        read(SHARED / f"{name}_{variant}.csv"), read(SHARED / f"{name}_reports.csv"), strict=True
    ):
        text = report["preprocessed"]
        found = labeler._labels(text, labeler._matcher.find(text), text)
        # The reference is rounded to six digits.
        assert found.probabilities == pytest.approx(json.loads(reference["labels_json"]), abs=1e-6), report["text"]
        if not switches:
            assert [hit.pattern.text for hit in found.hits] == json.loads(report["patterns_json"])
            assert (found.unmatched, found.stripped) == (report["unmatched"], report["stripped"])
