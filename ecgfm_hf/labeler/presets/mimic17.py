"""
`mimic17`: the 17 labels that the published classifier for MIMIC-IV-ECG was trained on, as they were made.

The vocabulary of machine reports by clinical area, each finding a core term with what may stand around it. It stays
compatible with those labels where they surprise a clinician: any probability counts ("consider infarct", "no infarct"),
atrial fibrillation brings accessory pathway conduction, any block without a name is atrioventricular. What they do not
read, such as "SB" or a bare "Mobitz II", is left unread. `mimic17_clinical` mends these.
"""

from . import conduction, language, myocardium, pacing, recording, rhythm

LABELS = (
    "Poor data quality",
    "Sinus rhythm",
    "Premature ventricular contraction",
    "Tachycardia",
    "Ventricular tachycardia",
    "Supraventricular tachycardia with aberrancy",
    "Atrial fibrillation",
    "Atrial flutter",
    "Bradycardia",
    "Accessory pathway conduction",
    "Atrioventricular block",
    "1st degree atrioventricular block",
    "Bifascicular block",
    "Right bundle branch block",
    "Left bundle branch block",
    "Infarction",
    "Electronic pacemaker",
)

# Findings that follow from others.
_FOLLOWING = {
    "Supraventricular tachycardia with aberrancy": ["Supraventricular tachycardia"],
    **{f"{territory} infarction": ["Infarction"] for territory in language.TERRITORIES},
}

_ABERRANCY = "Supraventricular tachycardia with aberrancy"
_COMPOUNDS = [
    {"entity": "Bifascicular block", "including": ["Right bundle branch block", "Fascicular block"]},
    {"entity": _ABERRANCY, "including": ["Supraventricular tachycardia", "Aberrant ventricular conduction"]},
    # Any fast rhythm will do, unless a ventricular one may be what is conducted so.
    {
        "entity": _ABERRANCY,
        "including": ["Tachycardia", "Aberrant ventricular conduction"],
        "excluding": ["Ventricular tachycardia"],
    },
]


def definition() -> dict:
    """The preset as a definition (see `ecgfm_hf.labeler.definition`), new at every call."""
    areas = (rhythm, conduction, pacing, recording, myocardium, language)
    findings = {name: finding for area in areas for name, finding in area.FINDINGS.items()}
    return {
        "name": "mimic17",
        "labels": list(LABELS),
        "entities": {name: list(parents) for name, (parents, _) in findings.items()} | _FOLLOWING,
        "phrases": {name: list(phrases) for name, (_, phrases) in findings.items()},
        "descriptors": {name: dict(entry) for name, entry in language.DESCRIPTORS.items()},
        "connectives": {text: dict(entry) for text, entry in language.CONNECTIVES.items()},
        "compounds": [dict(compound) for compound in _COMPOUNDS],
        "attached": [
            {"entity": "Infarction", "descriptor": word, "gives": f"{word} infarction"}
            for word in (*language.TERRITORIES, "Acute")
        ],
        "ignored": list(recording.IGNORED),
        "slots": {name: list(values) for name, values in (conduction.SLOTS | recording.SLOTS).items()},
    }
