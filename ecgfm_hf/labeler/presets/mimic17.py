"""
`mimic17`: the 17 labels of the published classifier for MIMIC-IV-ECG, as its training data have them.

The preset reproduces these labels also where they surprise a clinician: any probability counts ("consider infarct", "no
infarct"), atrial fibrillation brings accessory pathway conduction, any block without a name is atrioventricular. What
the original does not read, such as "SB" or a bare "Mobitz II", stays unread. `mimic17_clinical` corrects these.
"""

from typing import Any

from . import vocabulary

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
    **{f"{territory} infarction": ["Infarction"] for territory in vocabulary.TERRITORIES},
}

_ABERRANCY = "Supraventricular tachycardia with aberrancy"
_COMPOUNDS = [
    {"entity": "Bifascicular block", "including": ["Right bundle branch block", "Fascicular block"]},
    {"entity": _ABERRANCY, "including": ["Supraventricular tachycardia", "Aberrant ventricular conduction"]},
    # Any fast rhythm counts, unless a ventricular one may be the one with aberrant conduction.
    {
        "entity": _ABERRANCY,
        "including": ["Tachycardia", "Aberrant ventricular conduction"],
        "excluding": ["Ventricular tachycardia"],
    },
]


def definition() -> dict[str, Any]:
    """Return the preset as a definition (see `ecgfm_hf.labeler.definition`), a new one at every call."""
    findings = vocabulary.FINDINGS
    return {
        "name": "mimic17",
        "labels": list(LABELS),
        "entities": {name: list(parents) for name, (parents, _) in findings.items()} | _FOLLOWING,
        "phrases": {name: list(phrases) for name, (_, phrases) in findings.items()},
        "descriptors": {name: dict(entry) for name, entry in vocabulary.DESCRIPTORS.items()},
        "connectives": {text: dict(entry) for text, entry in vocabulary.CONNECTIVES.items()},
        "compounds": [dict(compound) for compound in _COMPOUNDS],
        "attached": [
            {"entity": "Infarction", "descriptor": word, "gives": f"{word} infarction"}
            for word in (*vocabulary.TERRITORIES, "Acute")
        ],
        "ignored": list(vocabulary.IGNORED),
        "slots": {name: list(values) for name, values in vocabulary.SLOTS.items()},
    }
