"""
`mimic17-clinical`: the same 17 labels, read as a clinician would. Not for reproducing the published labels.

It extends `mimic17` by the changes that `DIFFERENCES` lists with an example each. Unchanged: doubt still counts
("consider infarct" is positive, with probability 0.5). Doubt lowers a probability in every report, with or without a
connective, also of what follows from several findings, and stays within its statement.

Atrial fibrillation and flutter are fast rhythms unless the report calls the ventricular response slow or controlled
(60 to 100/min). A slow response is a bradycardia and a rapid one a tachycardia, in any rhythm. A rate in numbers is not
read.
"""

from typing import Any

from ..normalization_tables import LEADS
from . import mimic17
from .vocabulary import CERTAINTY

# What changes, an example, and its labels in `mimic17` and in `mimic17-clinical`.
DIFFERENCES: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("negation is heard", "No evidence of acute infarct", ("Infarction",), ()),
    (
        "negation passes 'or' and a slash",
        "Without atrial fibrillation or flutter",
        ("Tachycardia", "Atrial fibrillation", "Atrial flutter", "Accessory pathway conduction"),
        (),
    ),
    ("of any finding", "No PVCs", ("Premature ventricular contraction",), ()),
    ("what is no longer there is not there", "Inferior infarct no longer seen", ("Infarction",), ()),
    (
        "what was replaced is not there",
        "Sinus rhythm has replaced atrial fibrillation",
        ("Sinus rhythm", "Tachycardia", "Atrial fibrillation", "Accessory pathway conduction"),
        ("Sinus rhythm",),
    ),
    (
        "'not' is heard",
        "Sinus rhythm, not atrial fibrillation",
        ("Sinus rhythm", "Tachycardia", "Atrial fibrillation", "Accessory pathway conduction"),
        ("Sinus rhythm",),
    ),
    (
        "so are 'rather than' and 'instead of'",
        "Rather than atrial flutter, sinus tachycardia",
        ("Sinus rhythm", "Tachycardia", "Atrial flutter", "Accessory pathway conduction"),
        ("Sinus rhythm", "Tachycardia"),
    ),
    (
        "what is unlikely is not there",
        "Infarct unlikely",
        ("Infarction",),
        (),
    ),
    (
        "history is not this recording",
        "Sinus rhythm, history of atrial flutter",
        ("Sinus rhythm", "Tachycardia", "Atrial flutter", "Accessory pathway conduction"),
        ("Sinus rhythm",),
    ),
    (
        "what has resolved is not there",
        "Atrial fibrillation resolved",
        ("Tachycardia", "Atrial fibrillation", "Accessory pathway conduction"),
        (),
    ),
    (
        "what is denied is not there",
        "Denies infarct",
        ("Infarction",),
        (),
    ),
    (
        "an answer after a colon is heard",
        "Infarct: no",
        ("Infarction",),
        (),
    ),
    (
        "a pattern or syndrome is what is named before it",
        "No pattern of infarct",
        ("Infarction",),
        (),
    ),
    (
        "the block of a flutter goes with it",
        "Sinus rhythm has replaced atrial flutter with 2:1 block",
        ("Sinus rhythm", "Tachycardia", "Atrial flutter", "Accessory pathway conduction", "Atrioventricular block"),
        ("Sinus rhythm",),
    ),
    (
        "bifascicular block is one, and no atrioventricular block",
        "Bifascicular block",
        ("Atrioventricular block",),
        ("Bifascicular block", "Right bundle branch block"),
    ),
    (
        "third-degree block in words is complete",
        "Third degree A-V block",
        ("Atrioventricular block",),
        ("Bradycardia", "Atrioventricular block"),
    ),
    (
        "first-degree block needs no 'A-V'",
        "First degree block",
        ("Atrioventricular block",),
        ("Atrioventricular block", "1st degree atrioventricular block"),
    ),
    ("STEMI and NSTEMI are infarctions", "Consider acute STEMI", (), ("Infarction",)),
    (
        "no accessory pathway from atrial fibrillation or flutter",
        "Atrial fibrillation",
        ("Tachycardia", "Atrial fibrillation", "Accessory pathway conduction"),
        ("Tachycardia", "Atrial fibrillation"),
    ),
    (
        "a slow ventricular response is a bradycardia",
        "Atrial fibrillation with slow ventricular response",
        ("Tachycardia", "Atrial fibrillation", "Accessory pathway conduction"),
        ("Atrial fibrillation", "Bradycardia"),
    ),
    (
        "a controlled one is neither slow nor fast",
        "Atrial flutter with controlled ventricular response",
        ("Tachycardia", "Atrial flutter", "Accessory pathway conduction"),
        ("Atrial flutter",),
    ),
    (
        "a rapid one is a tachycardia",
        "Sinus arrhythmia with rapid ventricular response",
        ("Sinus rhythm",),
        ("Sinus rhythm", "Tachycardia"),
    ),
    (
        "ventricular flutter is not atrial",
        "Ventricular flutter",
        ("Tachycardia", "Atrial flutter", "Accessory pathway conduction"),
        ("Tachycardia",),
    ),
    (
        "ventricular fibrillation is fast",
        "Ventricular fibrillation",
        (),
        ("Tachycardia",),
    ),
    (
        "NSVT is ventricular",
        "NSVT",
        ("Tachycardia",),
        ("Tachycardia", "Ventricular tachycardia"),
    ),
    (
        "reentry by an accessory pathway shows the pathway",
        "AVRT",
        ("Tachycardia",),
        ("Tachycardia", "Accessory pathway conduction"),
    ),
    (
        "a sinus tachycardia with bundle branch block is no aberrancy",
        "Sinus tachycardia with RBBB",
        (
            *("Sinus rhythm", "Tachycardia", "Supraventricular tachycardia with aberrancy"),
            "Right bundle branch block",
        ),
        ("Sinus rhythm", "Tachycardia", "Right bundle branch block"),
    ),
    (
        "nor is atrial fibrillation with bundle branch block",
        "Atrial fibrillation with LBBB",
        (
            "Tachycardia",
            "Supraventricular tachycardia with aberrancy",
            "Atrial fibrillation",
            "Accessory pathway conduction",
            "Left bundle branch block",
        ),
        ("Tachycardia", "Atrial fibrillation", "Left bundle branch block"),
    ),
    (
        "nor is a wide complex tachycardia",
        "Wide complex tachycardia with LBBB",
        ("Tachycardia", "Supraventricular tachycardia with aberrancy", "Left bundle branch block"),
        ("Tachycardia", "Left bundle branch block"),
    ),
    ("a block that is not of the node is not atrioventricular", "Bundle branch block", ("Atrioventricular block",), ()),
    (
        "trifascicular block is one too",
        "Trifascicular block",
        ("Atrioventricular block",),
        ("Atrioventricular block", "Bifascicular block", "Right bundle branch block"),
    ),
    (
        "a block round an infarct is neither",
        "Peri-infarct block",
        ("Atrioventricular block", "Infarction"),
        (),
    ),
    (
        "a bundle branch block is not also atrioventricular",
        "LBBB block",
        ("Atrioventricular block", "Left bundle branch block"),
        ("Left bundle branch block",),
    ),
    (
        "nor is a block within the ventricles",
        "Intraventricular block",
        ("Atrioventricular block",),
        (),
    ),
    (
        "nor is one of the sinus node, whatever its degree",
        "2nd degree S-A block (Mobitz II)",
        ("Atrioventricular block",),
        (),
    ),
    (
        "the parenthesis of a complete block may come first",
        "Complete (third degree) A-V block",
        ("Atrioventricular block",),
        ("Bradycardia", "Atrioventricular block"),
    ),
    ("Mobitz and Wenckebach need no 'block'", "Mobitz II", (), ("Atrioventricular block",)),
    ("preexcitation needs no chamber", "Wolff-Parkinson-White", (), ("Accessory pathway conduction",)),
    (
        "ventricular ectopy is premature beats",
        "Frequent ventricular ectopy",
        (),
        ("Premature ventricular contraction",),
    ),
    (
        "premature beats of two chambers in any words",
        "Premature ventricular and supraventricular beats",
        (),
        ("Premature ventricular contraction",),
    ),
    ("a wandering pacemaker is not electronic", "Wandering atrial pacemaker", ("Electronic pacemaker",), ()),
    ("nor is demand ischemia, nor a fusion beat", "Fusion complexes", ("Electronic pacemaker",), ()),
    ("artifacts and poor quality in any words", "Baseline artifact", (), ("Poor data quality",)),
    (
        "leads that were misplaced are poor quality",
        "Lead misplacement",
        (),
        ("Poor data quality",),
    ),
    (
        "baseline wander needs no lead",
        "Baseline wander",
        (),
        ("Poor data quality",),
    ),
    (
        "missing leads in any words",
        "Leads missing",
        (),
        ("Poor data quality",),
    ),
    ("sentences about leads know all leads", "Sequence error: V1 omitted", (), ("Poor data quality",)),
    ("more abbreviations", "SB", (), ("Sinus rhythm", "Bradycardia")),
)

_SEEN = "{seen|present|evident|apparent|noted|visible|detected|found|identified|in evidence}"

_ABSENCE = {
    "before": [
        *("no", "without", "neither", "free of", "negative for", "{absence|resolution} of", "absent"),
        *("{has|have} replaced", "[is] no longer in", "not [in]", "{rather than|instead of}", "{denies|denied}"),
        *("[past] {history of|hx of|h/o}", "converted from"),
        *("[very|highly] unlikely to {be|represent}", ", [very|highly] unlikely", ": {no|none|absent|negative}"),
    ],
    "after": [
        *(f"[is|are|was|were] no longer [{_SEEN}]", "longer {seen|present}", f"[is|are|was|were] not {_SEEN}"),
        *("{has|have} {resolved|disappeared|gone}", "{is|are|was|were} {absent|excluded|ruled out|gone}"),
        *("resolved", "excluded", "{has|have} converted", "in the past", "in history"),
        *("[is|was|has been|have been] replaced by", "ruled out", "[is|are] [very|highly] unlikely"),
        *(f"not {{well|clearly|definitely|reliably}} {_SEEN}", ": {no|none|absent|negative}{,|.}"),
    ],
}

_DESCRIPTORS = {
    "Absence": _ABSENCE,
    "Possible": {
        **CERTAINTY["Possible"],
        "before": [*CERTAINTY["Possible"]["before"], "suspected", "questionable", "may or may not be"],
    },
    "Rule out": {
        **CERTAINTY["Rule out"],
        "before": ["consider", "[{cannot|can not|could not}] {rule out|exclude}"],
        "after": ["{cannot be|can not be|could not be|not [definitely|entirely]} {excluded|ruled out}"],
    },
    # A word of the finding before it. As a separate phrase it would take that finding's "not seen".
    "Pattern": {"after": ["{pattern|syndrome}"]},
}

# Descriptors of one finding also apply to the other: "no infarct or ischemia".
_SHARED = ["Absence", "Possible", "Rule out"]
_CONNECTIVES = {
    **{word: {"left": ["Probable"], "right": ["Probable"], "passes": _SHARED} for word in ("or", "and/or")},
    "nor": {"passes": _SHARED},
}

# "No" and "not" that are about no finding, or not about the one that comes next.
_MUCH = "[significant|major|definite|diagnostic|interval|acute|apparent]"
_IGNORED = [
    *(f"{{no|without|not}} {_MUCH} {{change|changes}}", "unchanged", "not [significantly|much] {changed|different}"),
    *("not {previously|formerly} seen", "not {only|new|yet|always|all|previously|diagnostic|specific|necessarily}"),
    *(
        "not {discernible|discernable|identifiable|recognizable|measured|measurable|available|performed|recorded}",
        "or not",
    ),
    *("not {conducted|related|associated|due|possible|required|applicable|reliable|reported|obtained|used|entered}",),
]
_DROPPED = ("pattern",)  # Of what `mimic17` ignores.

_ABERRANCY = "Supraventricular tachycardia with aberrancy"
_NOT_FAST = ["Slow ventricular response", "Controlled ventricular response"]
_COMPOUNDS = [
    {"entity": "Bifascicular block", "including": ["Right bundle branch block", "Fascicular block"]},
    # A bundle branch block speaks of aberrancy in supraventricular tachycardia; aberrant conduction in any fast rhythm.
    {"entity": _ABERRANCY, "including": ["Supraventricular tachycardia", "Bundle branch block"]},
    {"entity": _ABERRANCY, "including": ["Supraventricular tachycardia", "Aberrant ventricular conduction"]},
    {
        "entity": _ABERRANCY,
        "including": ["Tachycardia", "Aberrant ventricular conduction"],
        "excluding": ["Ventricular tachycardia"],
    },
    # The atria alone make a fast rhythm only where the report does not call the ventricles slower.
    {"entity": "Fast atrial fibrillation", "including": ["Atrial fibrillation"], "excluding": _NOT_FAST},
    {"entity": "Fast atrial flutter", "including": ["Atrial flutter"], "excluding": _NOT_FAST},
    {"entity": _ABERRANCY, "including": ["Atrial flutter", "Bundle branch block"], "excluding": _NOT_FAST},
    *(
        {
            "entity": _ABERRANCY,
            "including": [rhythm, "Aberrant ventricular conduction"],
            "excluding": [*_NOT_FAST, "Ventricular tachycardia"],
        }
        for rhythm in ("Atrial fibrillation", "Atrial flutter")
    ),
]

_REWRITES = {
    **{"sb": "sinus bradycardia", "sr": "sinus rhythm", "nsr": "normal sinus rhythm", "sarr": "sinus arrhythmia"},
    **{
        "paf": "paroxysmal atrial fibrillation",
        "rvr": "rapid ventricular response",
        "svr": "slow ventricular response",
    },
    **{written: "premature ventricular beat" for written in ("vpc", "vpd", "pvb", "pvd")},
    **{written: "premature ventricular beats" for written in ("vpcs", "vpds", "vpc(s)", "pvbs", "pvds")},
    **{"aivr": "accelerated idioventricular rhythm", "ivr": "idioventricular rhythm", "wap": "wandering pacemaker"},
    **{written: "left anterior fascicular block" for written in ("lah", "lahb", "left anterior hemiblock")},
    **{written: "left posterior fascicular block" for written in ("lph", "lphb", "left posterior hemiblock")},
    # The normalisation takes the original's word for it: supraventricular.
    "nsvt": "nonsustained ventricular tachycardia",
    **{"rbb block": "right bundle branch block", "lbb block": "left bundle branch block"},
    **{"vtach": "ventricular tachycardia", "svtach": "supraventricular tachycardia"},
    **{"av node block": "atrioventricular block", "tavb": "3rd degree atrioventricular block"},
    **{"nstemi": "non st elevation infarct", "non-stemi": "non st elevation infarct", "stemi": "st elevation infarct"},
}

# Findings that are new, or have other parents.
_ENTITIES = {
    "Atrial fibrillation": [],
    "Atrial flutter": [],
    "Fast atrial fibrillation": ["Tachycardia"],
    "Fast atrial flutter": ["Macro-reentry atrial tachycardia"],
    "Rapid ventricular response": ["Tachycardia"],
    "Uncontrolled ventricular response": ["Tachycardia"],
    "Slow ventricular response": ["Bradycardia"],
    "Controlled ventricular response": [],
    "Reentry": [],
    "Reentry tachycardia": ["Tachycardia"],
    "Fusion complex": [],
    "Bundle branch block": [],
    "Ventricular flutter": ["Tachycardia"],
    "Ventricular fibrillation": ["Tachycardia"],
    "Supraventricular reentry tachycardia": ["Supraventricular tachycardia"],
    "Accessory pathway tachycardia": ["Supraventricular tachycardia", "Accessory pathway conduction"],
    "Wandering pacemaker": [],
    "Trifascicular block": ["Bifascicular block", "Atrioventricular block"],
    "Block": [],
    "Non-ST elevation infarction": ["Acute infarction"],
}

# In `mimic17` a block without a name is atrioventricular.
_REPLACED = ("[atrioventricular] block",)
# The block of a flutter goes with it ("has replaced atrial flutter with 2:1 block").
_FLUTTER = {
    "2:1": "atrial flutter with 2:1 {[atrioventricular] block|conduction}",
    "variable": "atrial flutter with variable {[atrioventricular] block|conduction}",
    "high grade": "atrial flutter with {high grade|3:1|4:1} [atrioventricular] block",
}
# The response goes with its rhythm ("history of atrial fibrillation with rapid ventricular response").
_RESPONSES = {
    "Rapid ventricular response": "rapid",
    "Uncontrolled ventricular response": "uncontrolled",
    "Slow ventricular response": "slow",
    "Controlled ventricular response": "[well] {controlled|moderate|normal}",
}
_WITH_RESPONSE = {
    rhythm: {
        name: [f"{written}{{ | with | with a |, }}{words} ventricular {{response|rate}}", f"{words} {written}"]
        for name, words in _RESPONSES.items()
    }
    for rhythm, written in (("Atrial fibrillation", "atrial fibrillation"), ("Atrial flutter", "[atrial] flutter"))
}
_PHRASES = {
    "Ventricular flutter": ["ventricular flutter"],
    "Ventricular fibrillation": ["ventricular fibrillation"],
    # "or" and a slash between the two are gone from normalised text; the two findings share their descriptors.
    "Atrial fibrillation": ["atrial {fibrillation atrial flutter|flutter atrial fibrillation}"],
    "Rapid ventricular response": ["ventricular {response|rate} [is] rapid"],
    "Slow ventricular response": ["ventricular {response|rate} [is] slow"],
    "Controlled ventricular response": [
        "[well] {controlled|moderate|normal} ventricular {response|rate}",
        *("ventricular {response|rate} [is] [well] {controlled|normal}", "rate{ |-}controlled", "controlled rate"),
    ],
    "Atrial flutter": ["atrial {fibrillation atrial flutter|flutter atrial fibrillation}", *_FLUTTER.values()],
    "Supraventricular reentry tachycardia": ["atrioventricular nodal reentry tachycardia"],
    "Accessory pathway tachycardia": ["atrioventricular reentry tachycardia"],
    "Premature ventricular contraction": [
        *("ectopic ventricular {beat|beats}", "ventricular {bigeminy|trigeminy|quadrigeminy|couplet|couplets}"),
        *("ventricular ectopic", "premature [beats,] ventricular and supraventricular [beats]"),
    ],
    "Wandering pacemaker": [
        *("wandering {pacemaker|pacing}", "wandering {atrial pacing|junctional {pacemaker|pacing}}"),
        "ectopic {atrial pacing|junctional {pacemaker|pacing}}",
    ],
    "Electronic pacemaker artifact": ["electronic pacemaker {artifact|artifacts}"],
    "Ischemia": ["demand ischemia"],
    # Degrees and types of a sinus block are its own.
    "Sinus block": [
        "[1st degree|2nd degree|3rd degree|high grade|2:1|complete] sinus block",
        "[2nd degree|2:1] sinus block{, | - | (| | with }mobitz type {1|2}[)]",
        "[2nd degree] mobitz type {1|2} [2nd degree] sinus block",
        "sinus block{,| |} {2:1|2nd degree}",
    ],
    "Block": ["block", "bundle branch block", "exit block", "[peri-] infarct block", "hemiblock"],
    "Intraventricular conduction delay": ["{intraventricular|right ventricular|left ventricular} block"],
    "Atrioventricular block": ["{atrioventricular|nodal} block", "{3:1|4:1|5:1|6:1} block"],
    "1st degree atrioventricular block": ["1st degree block"],
    "2nd degree atrioventricular block": ["2nd degree block"],
    "3rd degree atrioventricular block": [
        "3rd degree [atrioventricular] block",
        *("complete block", "complete (3rd degree) [atrioventricular] block"),
        "atrioventricular block[,] {3rd degree|complete}",
    ],
    "Variable atrioventricular block": ["variable block", _FLUTTER["variable"]],
    "2:1 atrioventricular block": ["2:1 block", _FLUTTER["2:1"]],
    "High grade atrioventricular block": ["high grade block", _FLUTTER["high grade"]],
    "Mobitz type 1 block": ["mobitz type 1"],
    "Mobitz type 2 block": ["mobitz type 2"],
    "Bifascicular block": ["bifascicular [bundle branch] block"],
    "Trifascicular block": ["trifascicular block"],
    "Preexcitation": ["preexcitation [syndrome|pattern]"],
    "Accessory pathway conduction": ["accessory pathway"],
    "Wolff-Parkinson-White syndrome": ["wolff-parkinson-white [syndrome|pattern]"],
    "Non-ST elevation infarction": ["non[-] st elevation infarct", "non-st elevation infarct"],
    "Poor data quality": [
        *("poor [data|signal|tracing|ecg] quality", "poor quality [data|signal|tracing|ecg]"),
        *("{technically|technical} {poor|limited|difficult} [quality] [tracing|study|ecg]", "uninterpretable"),
        *("data quality may affect [computer] interpretation", "unsuitable for analysis"),
    ],
    "Artifact": [
        "[baseline|muscle|motion|movement|tremor|electrical] {artifact|artifacts}",
        "{baseline wander|[ac|electrical|60 hz|50 hz] interference}",
    ],
    "QT prolongation": ["qt long"],
    "Missing lead": ["missing {lead|leads}", "{lead|leads} missing"],
    "Electrode reversal": ["{lead|leads|electrodes} {reversal|reversed|misplacement}"],
}


def definition() -> dict[str, Any]:
    """Return the preset as a definition (see `ecgfm_hf.labeler.definition`), a new one at every call."""
    base = mimic17.definition()
    phrases = {name: [text for text in texts if text not in _REPLACED] for name, texts in base["phrases"].items()}
    for name, texts in _PHRASES.items():
        phrases[name] = [*phrases.get(name, []), *texts]
    for rhythm, responses in _WITH_RESPONSE.items():
        for name, texts in responses.items():
            for finding in (rhythm, name):
                phrases[finding] = [*phrases.get(finding, []), *texts]
    return {
        **base,
        "name": "mimic17-clinical",
        "entities": {**base["entities"], **_ENTITIES},
        "phrases": phrases,
        "descriptors": {**base["descriptors"], **_DESCRIPTORS},
        "connectives": {**base["connectives"], **_CONNECTIVES},
        "compounds": _COMPOUNDS,
        "ignored": [text for text in (*base["ignored"], *_IGNORED) if text not in _DROPPED],
        "rewrites": _REWRITES,
        "switches": {
            **{"connective_gate": False, "honour_absence": True, "within_statement": True},
            "doubtful_compounds": True,
        },
        "slots": {**base["slots"], "morphology_lead": list(LEADS), "sequence_lead": list(LEADS)},
    }
