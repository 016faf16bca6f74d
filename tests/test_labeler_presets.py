"""The labelers that come with the package: against the original's output, and where they differ from it on purpose."""

import csv
import json
import os
import pickle
import random
import time
from pathlib import Path

import pytest

from ecgfm_hf.labeler import MIMIC17_LABELS, PRESETS, Labeler, LabelerError
from ecgfm_hf.labeler.presets.mimic17_clinical import DIFFERENCES

FIXTURES = Path(__file__).parent / "fixtures" / "labeler"
SHARED = Path(os.environ.get("ECGFM_SHARED", Path(__file__).parents[2] / "shared")) / "labeler"
needs_shared = pytest.mark.skipif(
    not (SHARED / "golden_reports.csv").is_file(), reason=f"needs the reference reports in {SHARED} (set ECGFM_SHARED)"
)


def read(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def mimic17():
    return Labeler.from_preset("mimic17")


@pytest.fixture(scope="module")
def clinical():
    return Labeler.from_preset("mimic17-clinical")


def positives(labeler, report):
    return {label for label, value in zip(labeler.labels, labeler.row(report), strict=True) if value}


@pytest.mark.parametrize("name", ["golden", "edge"])
def test_mimic17_gives_the_labels_of_the_original(mimic17, name):
    reports = read(FIXTURES / f"{name}_reports.csv")
    assert len(reports) > 150
    assert [
        r["text"] for r in reports if positives(mimic17, r["text"]) != set(filter(None, r["labels"].split("|")))
    ] == []


@needs_shared
@pytest.mark.parametrize("name", ["golden", "edge"])
def test_mimic17_gives_the_labels_of_the_original_on_all_reference_reports(mimic17, name):
    different = [
        report["text"]
        for report in read(SHARED / f"{name}_reports.csv")
        if mimic17.row(report["text"]) != [int(report[label]) for label in MIMIC17_LABELS]
    ]
    assert different == []


@needs_shared
def test_mimic17_agrees_with_the_original_tables_on_lines_put_together_anew(mimic17):
    original = Labeler.from_original(SHARED / "original_json", MIMIC17_LABELS)
    draw = random.Random(7)
    lines = sorted({line for report in read(SHARED / "golden_reports.csv") for line in report["text"].split("; ")})
    words = ["possible", "probable", "cannot rule out", "new", "old", "no", "frequent", "incomplete", "wide", "atrial"]
    words += ["RBBB", "AFL", "CHB", "NSVT", "SB", "aberrantly conducted", "bbb", "demand", "mobitz II", "pacer"]
    joints = [" with ", " and ", " or ", ", ", " - ", "/", " "]
    different, number = [], 1500
    for _ in range(number):
        parts = []
        for _ in range(draw.randint(1, 9)):
            line = draw.choice(lines)
            if draw.random() < 0.5:
                line = draw.choice([f"{draw.choice(words)} {line}", line + draw.choice(joints) + draw.choice(words)])
            parts.append(draw.choice([str, str, str.upper, str.lower, str.title])(line))
        report = "; ".join(parts)
        if mimic17.row(report) != original.row(report):
            different.append(report)
    assert len(different) <= 0.005 * number, different


@pytest.mark.parametrize(
    ("report", "labels"),
    [
        ("RBBB; fascicular block", {"Right bundle branch block", "Bifascicular block"}),
        ("LBBB with LAFB", {"Left bundle branch block"}),
        ("Complete heart block", {"Atrioventricular block", "Bradycardia"}),
        ("2:1 conduction", {"Atrioventricular block"}),
        ("3:1 conduction", set()),
        ("Sinus exit block", set()),
        ("Accelerated idioventricular rhythm", set()),
        ("Idioventricular rhythm", {"Bradycardia"}),
        ("A-V sequential pacemaker", {"Electronic pacemaker"}),
        ("Failure to sense and capture", {"Electronic pacemaker"}),
        ("Multiple premature complexes, vent & supraven", {"Premature ventricular contraction"}),
        ("NSVT", {"Tachycardia"}),
        ("Ventricular premature complexes", {"Premature ventricular contraction"}),
        ("Anteroseptal MI, old; confirmed by Dr X; RBBB", {"Infarction"}),
        ("Repeat ECG", {"Poor data quality"}),
        ("Repeat ECG to exclude technical error", set()),
        ("Sequence error: V2,V3 omitted", {"Poor data quality"}),
        ("Lead(s) V2 V3 were not used for morphology analysis", set()),
        ("WPW pattern type B", {"Accessory pathway conduction"}),
        ("Sinus tachycarida; atiral flutter", {"Sinus rhythm", "Tachycardia", "Atrial flutter"}),
    ],
)
def test_mimic17_reads_the_vocabulary_of_machine_reports(mimic17, report, labels):
    flutter = {"Accessory pathway conduction"} if "Atrial flutter" in labels else set()
    assert positives(mimic17, report) == labels | flutter


@needs_shared
def test_abbreviations_of_machines_are_read_with_the_original_tables_too():
    original = Labeler.from_original(SHARED / "original_json", MIMIC17_LABELS)
    assert positives(original, "Multiple premature complexes, vent & supraven") == {"Premature ventricular contraction"}
    assert positives(original, "NSVT") == {"Tachycardia"}
    assert original.normalize("Repol abnrm") == "repolarization abnormality"


def test_what_follows_from_doubtful_findings_is_doubtful_in_the_clinical_preset(mimic17, clinical):
    aberrancy, tachycardia = (
        MIMIC17_LABELS.index(name) for name in ("Supraventricular tachycardia with aberrancy", "Tachycardia")
    )
    report = "Possible SVT and aberrant conduction"
    assert mimic17.row(report, soft=True)[aberrancy] == 1.0
    assert clinical.row(report, soft=True)[aberrancy] == 0.65  # as its parent, tachycardia
    assert clinical.row("Possible atrial fibrillation", soft=True)[tachycardia] == 0.65
    # The rhythm is in doubt, not its rate.
    possible = clinical.row("Possible atrial fibrillation; rapid ventricular response", soft=True)
    assert possible[tachycardia] == 1.0


@pytest.mark.parametrize("report", ["SB", "VPCs", "STEMI", "Mobitz II", "Preexcitation", "Wolff-Parkinson-White"])
def test_what_the_original_does_not_read_stays_unread_in_mimic17(mimic17, report):
    assert positives(mimic17, report) == set()
    assert mimic17(report).stripped


@pytest.mark.parametrize(
    ("why", "report", "compatible", "clinical_labels"), DIFFERENCES, ids=[d[0] for d in DIFFERENCES]
)
def test_each_listed_difference_of_the_clinical_preset_is_one(
    mimic17, clinical, why, report, compatible, clinical_labels
):
    assert positives(mimic17, report) == set(compatible)
    assert positives(clinical, report) == set(clinical_labels)
    assert compatible != clinical_labels


@pytest.mark.parametrize(
    ("report", "labels"),
    [
        ("No infarct", set()),
        ("Neither infarct nor PVCs", set()),
        ("Sinus rhythm. No PVCs. Atrial pacing.", {"Sinus rhythm", "Electronic pacemaker"}),
        ("Anterior infarct is no longer present", set()),
        ("Atrial fibrillation no longer seen; Sinus rhythm", {"Sinus rhythm"}),
        ("History of atrial fibrillation with rapid ventricular response", set()),
        ("No AF with SVR", set()),
        ("Afib; slow ventricular response", {"Atrial fibrillation", "Bradycardia"}),
        ("AF with RVR", {"Atrial fibrillation", "Tachycardia"}),
        ("Atrial fibrillation, rate controlled", {"Atrial fibrillation"}),
        ("AF with slow, then rapid ventricular response", {"Atrial fibrillation", "Tachycardia"}),
        ("Slow atrial flutter with LBBB", {"Atrial flutter", "Bradycardia", "Left bundle branch block"}),
        (
            "Atrial flutter with LBBB",
            {
                *("Tachycardia", "Supraventricular tachycardia with aberrancy", "Atrial flutter"),
                "Left bundle branch block",
            },
        ),
        ("Atrial fibrillation has been replaced by sinus rhythm", {"Sinus rhythm"}),
        ("No change; inferior infarct", {"Infarction"}),
        ("No significant change in atrial flutter", {"Atrial flutter", "Tachycardia"}),
        ("Infarct cannot be excluded", {"Infarction"}),
        ("Trifascicular block", {"Bifascicular block", "Right bundle branch block", "Atrioventricular block"}),
        ("Sinus block", set()),
        ("SVT with RBBB", {"Tachycardia", "Supraventricular tachycardia with aberrancy", "Right bundle branch block"}),
        ("SB with VPCs", {"Sinus rhythm", "Bradycardia", "Premature ventricular contraction"}),
        ("Pacemaker spikes or artifacts", {"Electronic pacemaker"}),
        ("Lead(s) V2 were not used for morphology analysis", {"Poor data quality"}),
    ],
)
def test_clinical_preset_reads_as_a_clinician_would(clinical, report, labels):
    assert positives(clinical, report) == labels


@pytest.mark.parametrize(
    ("report", "labels"),
    [
        ("Without significant change, RBBB", {"Right bundle branch block"}),
        ("Not in atrial fibrillation", set()),
        ("Sinus rhythm, not atrial fibrillation", {"Sinus rhythm"}),
        ("Abnormal ECG, not infarct", set()),
        ("Infarct unlikely", set()),
        ("Sinus rhythm, infarct is unlikely; RBBB", {"Sinus rhythm", "Right bundle branch block"}),
        ("Sinus rhythm, unlikely infarct", {"Sinus rhythm"}),
        ("Sinus rhythm; infarct, unlikely", {"Sinus rhythm"}),
        ("WPW pattern no longer seen", set()),
        ("RBBB pattern not seen", set()),
        ("Possible WPW pattern", {"Accessory pathway conduction"}),
        ("Complete (third degree) AV block", {"Atrioventricular block", "Bradycardia"}),
        ("Sinus rhythm has replaced atrial flutter with 2:1 block", {"Sinus rhythm"}),
        ("Atrial flutter with variable AV block", {"Tachycardia", "Atrial flutter", "Atrioventricular block"}),
        ("Denies infarct", set()),
        ("Infarct: no", set()),
        ("Infarct: no; RBBB: yes", {"Right bundle branch block"}),
        ("Infarct: no, RBBB", {"Right bundle branch block"}),
        ("Rhythm: no atrial fibrillation", set()),
        ("Rather than atrial flutter, sinus tachycardia", {"Sinus rhythm", "Tachycardia"}),
        ("Sinus rhythm with 2nd degree S-A block, Mobitz I", {"Sinus rhythm"}),
        ("2:1 SA block", set()),
        ("2nd degree AV block, Mobitz I", {"Atrioventricular block"}),
        ("NSVT", {"Tachycardia", "Ventricular tachycardia"}),
        # "Not" that is about something else.
        ("Infarct not excluded", {"Infarction"}),
        ("Infarct cannot be excluded", {"Infarction"}),
        ("RBBB; infarct can not be ruled out", {"Right bundle branch block", "Infarction"}),
        ("Infarct not entirely excluded, RBBB", {"Right bundle branch block", "Infarction"}),
        ("Not significant change, RBBB", {"Right bundle branch block"}),
        ("RBBB, not significantly changed, inferior infarct", {"Right bundle branch block", "Infarction"}),
        ("P waves not well seen, RBBB", {"Right bundle branch block"}),
        ("P waves not discernible, atrial flutter", {"Tachycardia", "Atrial flutter"}),
        ("RBBB is not new, infarct", {"Right bundle branch block", "Infarction"}),
        ("May or may not be infarct", {"Infarction"}),
    ],
)
def test_clinical_preset_hears_what_is_denied_and_only_that(clinical, report, labels):
    assert positives(clinical, report) == labels


def test_a_pattern_is_no_gap_and_says_nothing_of_its_own(clinical):
    assert clinical("RBBB pattern; WPW syndrome").stripped == ""


def test_listed_differences_account_for_every_phrase_and_every_statement_that_differs(mimic17, clinical):
    def change(before, after):
        return frozenset({(label, "lost") for label in before - after} | {(label, "new") for label in after - before})

    listed = {change(set(compatible), set(other)) for _, _, compatible, other in DIFFERENCES}
    statements = {pattern.text for labeler in (mimic17, clinical) for pattern in labeler.knowledge.patterns}
    for name in ("golden", "edge"):
        statements.update(*(report["text"].split("; ") for report in read(FIXTURES / f"{name}_reports.csv")))
    unaccounted = {}
    for statement in statements:
        found = change(positives(mimic17, statement), positives(clinical, statement))
        if found != frozenset().union(*(some for some in listed if some <= found)):
            unaccounted[statement] = found
    assert unaccounted == {}


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_phrase_of_a_preset_can_be_found(name):
    labeler = Labeler.from_preset(name)
    assert [p.text for p in labeler.knowledge.patterns if not labeler._can_be_found(p.text)] == []


def test_doubt_lowers_the_probability_behind_the_gate_only(mimic17):
    at = MIMIC17_LABELS.index("Left bundle branch block")
    assert mimic17.row("Possible LBBB", soft=True)[at] == 1.0
    assert mimic17.row("Possible LBBB with PVCs", soft=True)[at] == 0.5
    assert mimic17.row("Possible LBBB with PVCs", keep=0.6)[at] == 0
    assert Labeler.from_preset("mimic17", connective_gate=False).row("Possible LBBB", soft=True)[at] == 0.5
    assert positives(Labeler.from_preset("mimic17", connective_gate=False, honour_absence=True), "No LBBB") == set()


def test_aberrant_conduction_counts_where_a_report_calls_something_conducted_so(mimic17):
    aberrancy = "Supraventricular tachycardia with aberrancy"
    assert aberrancy in positives(mimic17, "Atrial fibrillation with aberrantly conducted complexes")
    assert aberrancy not in positives(mimic17, "Atrial fibrillation; aberrantly conducted complexes")
    assert aberrancy not in positives(mimic17, "Ventricular tachycardia; LBBB")
    assert aberrancy in positives(mimic17, "Sinus tachycardia. Abnormal ventricular conduction pathways")


def test_advice_to_reverse_the_leads_is_no_poor_data_quality(mimic17):
    assert positives(mimic17, "Repeat with reversed leads") == set()
    assert positives(mimic17, "Limb leads reversed") == {"Poor data quality"}


def test_presets_are_new_at_every_call_and_can_be_sent_to_processes():
    for name, make in PRESETS.items():
        definition = make()
        definition["phrases"].clear()
        definition["labels"].clear()
        labeler = pickle.loads(pickle.dumps(Labeler.from_preset(name)))
        assert labeler.labels == MIMIC17_LABELS
        assert "Infarction" in positives(labeler, "Acute MI")
    with pytest.raises(LabelerError, match="preset 'mimic18' is unknown; known: mimic17, mimic17-clinical"):
        Labeler.from_preset("mimic18")


def test_a_preset_is_extended_by_name(tmp_path):
    mine = {
        "extends": "mimic17-clinical",
        "name": "mine",
        "labels": ["Long QT", "Anterior infarction", "Infarction - Old"],
        "entities": {"Long QT": []},
        "phrases": {"Long QT": ["prolonged qt"]},
        "removed": ["prolonged qt"],
        "rewrites": {"lqts": "prolonged qt"},
    }
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    for labeler in (Labeler.from_definition(mine), Labeler.from_definition(tmp_path / "mine.json")):
        assert positives(labeler, "LQTS") == {"Long QT"}
        assert positives(labeler, "Anteroseptal MI - old") == {"Anterior infarction", "Infarction - Old"}


def test_explanation_marks_the_words_of_the_report_itself(mimic17):
    page = mimic17.explain("Afib with PVC(s); 1st deg AV block <b>").to_html()
    for words in ("Afib", "PVC(s)", "1st deg AV block"):
        assert f'<mark class="label">{words}</mark>' in page
    assert '<mark class="word">with</mark>' in page
    assert "<b>" not in page


STRANGE = [
    "",
    None,
    float("nan"),
    3,
    b"RBBB",
    [],
    "心電図",
    "تخطيط",
    "\ud800",
    "\x00\x01\x07",
    "\"'",
    "   ",
    ";;;",
    "[{|",
]


@pytest.mark.parametrize("report", STRANGE, ids=repr)
def test_strange_input_has_no_labels(mimic17, clinical, report):
    for labeler in (mimic17, clinical):
        assert sum(labeler.row(report)) == 0
        labeler.explain(report).to_html()


@pytest.mark.parametrize(
    "report", ["\x00RBBB\x07", '"RBBB', "心電図 RBBB", "x" * 100_000 + " RBBB", "İ RBBB", "\nRBBB\t"]
)
def test_a_finding_among_strange_characters_is_found(mimic17, report):
    assert positives(mimic17, report) == {"Right bundle branch block"}


@pytest.mark.parametrize(
    "unit",
    [
        *("Sinus tachycardia with PVCs; 1st degree A-V block; Missing lead(s): I, aVL; ", " ", "a", "-", "?", "-?age"),
        *("when ", "atrial flutter/", "lead(s) unsuitable for analysis: V1 V2 ", "repeat if a a injury ", "premature "),
    ],
)
def test_time_is_linear_in_length(mimic17, unit):
    def seconds(size):
        report = unit * (size // len(unit))
        times = []
        for _ in range(3):
            start = time.process_time()
            mimic17.row(report)
            times.append(time.process_time() - start)
        return min(times)

    # Ten times the length in quadratic time would be a hundredfold; the garbage collector may double a tenfold.
    assert seconds(200_000) < 40 * max(seconds(20_000), 0.002)


def test_the_preset_and_the_converted_classifier_have_the_same_labels_in_one_order():
    from ecgfm_hf.fairseq import MIMIC17

    for preset in ("mimic17", "mimic17-clinical"):
        assert tuple(Labeler.from_preset(preset).labels) == tuple(MIMIC17.names)
