"""
`mimic17-clinical`: the same 17 labels, read as a clinician would. Not for reproducing the published labels.

It begins with `mimic17` and changes what `DIFFERENCES` lists with an example each. What it leaves as it was: doubt
still counts ("consider infarct" is positive, with probability 0.5), and atrial fibrillation and flutter are fast
rhythms whatever the ventricles make of them.
"""

from . import mimic17
from .language import CERTAINTY
from .recording import LEADS

# What changes, an example, and its labels in `mimic17` and in `mimic17-clinical`.
DIFFERENCES: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("negation is heard", "No evidence of acute infarct", ("Infarction",), ()),
    (
        "negation passes 'or' and a slash",
        "Without atrial fibrillation or flutter",
        ("Tachycardia", "Atrial fibrillation", "Atrial flutter", "Accessory pathway conduction"),
        (),
    ),
    ("what is no longer there is not there", "Inferior infarct no longer seen", ("Infarction",), ()),
    (
        "what was replaced is not there",
        "Sinus rhythm has replaced atrial fibrillation",
        ("Sinus rhythm", "Tachycardia", "Atrial fibrillation", "Accessory pathway conduction"),
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
        "ventricular flutter is not atrial",
        "Ventricular flutter",
        ("Tachycardia", "Atrial flutter", "Accessory pathway conduction"),
        ("Tachycardia",),
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
    ("a block that is not of the node is not atrioventricular", "Bundle branch block", ("Atrioventricular block",), ()),
    ("Mobitz and Wenckebach need no 'block'", "Mobitz II", (), ("Atrioventricular block",)),
    ("preexcitation needs no chamber", "Wolff-Parkinson-White", (), ("Accessory pathway conduction",)),
    (
        "ventricular ectopy is premature beats",
        "Frequent ventricular ectopy",
        (),
        ("Premature ventricular contraction",),
    ),
    ("a wandering pacemaker is not electronic", "Wandering atrial pacemaker", ("Electronic pacemaker",), ()),
    ("nor is demand ischemia, nor a fusion beat", "Fusion complexes", ("Electronic pacemaker",), ()),
    ("artifacts and poor quality in any words", "Baseline artifact", (), ("Poor data quality",)),
    ("sentences about leads know all leads", "Sequence error: V1 omitted", (), ("Poor data quality",)),
    ("more abbreviations", "SB", (), ("Sinus rhythm", "Bradycardia")),
)

_SEEN = "{seen|present|evident|apparent|noted|visible|detected|found|identified|in evidence}"

_ABSENCE = {
    "before": [
        *("no", "without", "neither", "free of", "negative for", "{absence|resolution} of", "absent"),
        *("{has|have} replaced", "[is] no longer in"),
    ],
    "after": [
        *(f"[is|are|was|were] no longer [{_SEEN}]", "longer {seen|present}", f"[is|are|was|were] not {_SEEN}"),
        *("{has|have} {resolved|disappeared|gone}", "{is|are|was|were} {absent|excluded|ruled out|gone}"),
        *("[is|was|has been|have been] replaced by", "ruled out"),
    ],
}

_DESCRIPTORS = {
    "Absence": _ABSENCE,
    "Possible": {**CERTAINTY["Possible"], "before": [*CERTAINTY["Possible"]["before"], "suspected", "questionable"]},
    "Rule out": {
        **CERTAINTY["Rule out"],
        "before": ["consider", "[{cannot|can not|could not}] {rule out|exclude}"],
        "after": ["{cannot be|not} {excluded|ruled out}"],
    },
}

# What is said of the one holds for the other: "no infarct or ischemia".
_SHARED = ["Absence", "Possible", "Rule out"]
_CONNECTIVES = {
    **{word: {"left": ["Probable"], "right": ["Probable"], "passes": _SHARED} for word in ("or", "and/or")},
    "nor": {"passes": _SHARED},
}

# "No" that is about no finding.
_IGNORED = ["no [significant|major|definite|diagnostic|interval|acute|apparent] {change|changes}", "unchanged"]

_ABERRANCY = "Supraventricular tachycardia with aberrancy"
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
    **{written: "left anterior fascicular block" for written in ("lah", "lahb", "lafb", "left anterior hemiblock")},
    **{written: "left posterior fascicular block" for written in ("lph", "lphb", "lpfb", "left posterior hemiblock")},
    **{"rbb block": "right bundle branch block", "lbb block": "left bundle branch block"},
    **{"vtach": "ventricular tachycardia", "svtach": "supraventricular tachycardia"},
    **{"av node block": "atrioventricular block", "tavb": "3rd degree atrioventricular block"},
    **{"nstemi": "non st elevation infarct", "non-stemi": "non st elevation infarct", "stemi": "st elevation infarct"},
}

# Findings that are new, or have other parents.
_ENTITIES = {
    "Atrial fibrillation": ["Tachycardia"],
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
_PHRASES = {
    "Ventricular flutter": ["ventricular flutter"],
    "Ventricular fibrillation": ["ventricular fibrillation"],
    # "or" and a slash between the two are gone from normalised text; together they share what is said of them.
    "Atrial fibrillation": ["atrial {fibrillation atrial flutter|flutter atrial fibrillation}"],
    "Atrial flutter": ["atrial {fibrillation atrial flutter|flutter atrial fibrillation}"],
    "Supraventricular reentry tachycardia": ["atrioventricular nodal reentry tachycardia"],
    "Accessory pathway tachycardia": ["atrioventricular reentry tachycardia"],
    "Premature ventricular contraction": [
        *("ectopic ventricular {beat|beats}", "ventricular {bigeminy|trigeminy|quadrigeminy|couplet|couplets}"),
        *("ventricular ectopic", "premature [beats,] ventricular and supraventricular [beats]"),
    ],
    "Wandering pacemaker": [
        *("wandering {pacemaker|pacing}", "wandering {atrial|junctional} {pacemaker|pacing}"),
        "ectopic {atrial|junctional} {pacemaker|pacing}",
    ],
    "Electronic pacemaker artifact": ["electronic pacemaker {artifact|artifacts}"],
    "Ischemia": ["demand ischemia"],
    "Block": ["block", "bundle branch block", "exit block", "[peri-] infarct block", "hemiblock"],
    "Intraventricular conduction delay": ["{intraventricular|right ventricular|left ventricular} block"],
    "Atrioventricular block": ["{atrioventricular|nodal} block", "{3:1|4:1|5:1|6:1} block"],
    "1st degree atrioventricular block": ["1st degree block"],
    "2nd degree atrioventricular block": ["2nd degree block"],
    "3rd degree atrioventricular block": [
        "3rd degree [atrioventricular] block",
        "complete block",
        "atrioventricular block[,] {3rd degree|complete}",
    ],
    "Variable atrioventricular block": ["variable block"],
    "2:1 atrioventricular block": ["2:1 block"],
    "High grade atrioventricular block": ["high grade block"],
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


def definition() -> dict:
    """The preset as a definition (see `ecgfm_hf.labeler.definition`), new at every call."""
    base = mimic17.definition()
    phrases = {name: [text for text in texts if text not in _REPLACED] for name, texts in base["phrases"].items()}
    for name, texts in _PHRASES.items():
        phrases[name] = [*phrases.get(name, []), *texts]
    return {
        **base,
        "name": "mimic17-clinical",
        "entities": {**base["entities"], **_ENTITIES},
        "phrases": phrases,
        "descriptors": {**base["descriptors"], **_DESCRIPTORS},
        "connectives": {**base["connectives"], **_CONNECTIVES},
        "compounds": _COMPOUNDS,
        "ignored": [*base["ignored"], *_IGNORED],
        "rewrites": _REWRITES,
        "switches": {"connective_gate": False, "honour_absence": True, "within_statement": True},
        "slots": {**base["slots"], "morphology_lead": list(LEADS), "sequence_lead": list(LEADS)},
    }
