"""Words that say more of a finding (how sure, where, how old, how much), and words that join findings."""

# How sure, with what remains of the probability. "May be normal variant" doubts that it is a finding at all.
CERTAINTY = {
    "Possible": {
        "before": ["{possible|possibly|suspect}", "{could|may} be", "evidence of", "<before?>"],
        "probability": 0.5,
    },
    "Rule out": {
        "before": ["consider", "[cannot] rule out"],
        "probability": 0.5,
        "creates": ["Needs clinical correlation"],
    },
    "Assess": {
        "before": ["check"],
        "after": ["clinical correlation is suggested"],
        "creates": ["Needs clinical correlation"],
    },
    "Probable": {"before": ["{probable|probably}"], "probability": 0.7},
    "Variant": {"before": ["variant"], "probability": 0.9},
    "Absence": {"before": ["no", "without"]},
}

# How old: before the finding in a word, after it behind a comma or a hyphen.
AGE = {
    "Acute": {"before": ["acute"], "after": [", [probably|possibly] acute"]},
    "Recent": {"before": ["recent"], "after": [", [probably|possibly] recent"]},
    "Old": {"before": ["old"], "after": [", old"]},
    "Age undetermined": {"after": ["[,|-] age undetermined", "of undetermined age"]},
}

# Where. A territory of two names is two territories.
TERRITORIES = {
    "Anterior": {"before": ["anterior", "anteroseptal", "anterolateral"]},
    "Inferior": {"before": ["inferior", "inferolateral", "inferoposterior"]},
    "Lateral": {"before": ["lateral", "anterolateral", "inferolateral"]},
    "Posterior": {"before": ["posterior", "inferoposterior"]},
    "Septal": {"before": ["septal", "anteroseptal"]},
}
PLACES = {
    **TERRITORIES,
    "High": {"before": ["high"]},
    "Atrial": {"before": ["atrial"]},
    "Junctional": {"before": ["junctional"]},
    "Ventricular": {"before": ["ventricular"]},
    "Supraventricular": {"before": ["supraventricular"]},
    "In leads": {"after": ["in {limb|precordial} leads", "in {lead}"]},
}

# How much, how often, of which kind.
KIND = {
    "Severe": {"before": ["{extensive|extreme|marked|markedly|prominent|severe}"]},
    "Minimal": {"before": ["{minimal|minor}"]},
    "Multiple": {"before": ["{multiple|multifocal|multiform}"]},
    "Frequent": {"before": ["frequent"]},
    "Occasional": {"before": ["occasional"]},
    "Paired": {"before": ["paired"]},
    "Paroxysmal": {"before": ["paroxysmal"]},
    "Intermittent": {"before": ["{intermittent|nonsustained|interpolated}"]},
    "Regular": {"before": ["regular"]},
    "Irregular": {"before": ["irregular"]},
    "Rapid": {"before": ["rapid"]},
    "Slow": {"before": ["slow"]},
    "Accelerated": {"before": ["accelerated"]},
    "Variable": {"before": ["variable"]},
    "Atypical": {"before": ["{atypical|abnormal}"]},
    "Complete": {"before": ["complete"]},
    "Borderline": {"before": ["borderline"]},
    "Generalized": {"before": ["{generalized|diffuse}"]},
    "Nonspecific": {"before": ["nonspecific"], "after": ["{is|are} nonspecific"]},
    "Normal": {"before": ["normal"], "after": ["for rate"]},
    "Secondary": {"before": ["secondary"]},
    "Ectopic": {"before": ["{ectopic|wandering}"]},
    "Narrow": {"before": ["narrow"]},
    "Electronic": {"before": ["electronic"]},
    "Summary": {"before": ["summary:"]},
    # The beats after it were conducted aberrantly, whatever they are.
    "Aberrated": {"before": ["aberrated"], "creates": ["Aberrant ventricular conduction"]},
}

DESCRIPTORS = {**CERTAINTY, **AGE, **PLACES, **KIND}

# Either of what "or" joins is probable; what a sign suggests is too.
CONNECTIVES = {
    **{word: {} for word in ("with", "and", "+", "to", "due to", "related to")},
    **{word: {"left": ["Probable"], "right": ["Probable"]} for word in ("or", "and/or")},
    **{word: {"right": ["Probable"]} for word in ("suggest", "suggests")},
    "consistent with": {"right": ["Possible"]},
    "conceivably related to": {},
}

FINDINGS = {"Needs clinical correlation": ([], [])}
