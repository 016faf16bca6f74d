"""
The vocabulary of machine reports: findings by clinical area, and the words that describe or join them.

A finding has its name, what follows from it, and how normalised reports write it, each a core term with what may stand
around it. For the grammar of phrases see `ecgfm_hf.labeler.definition`.
"""

from typing import Any

from ..normalization_tables import LEADS

# Where the beat comes from, how fast it is, and the beats that come between.

RHYTHM: dict[str, tuple[list[str], list[str]]] = {
    # Sinus node
    "Sinus rhythm": ([], ["sinus rhythm"]),
    "Sinus arrhythmia": (["Sinus rhythm"], ["sinus arrhythmia"]),
    "Sinus tachycardia": (["Sinus rhythm", "Tachycardia"], ["sinus tachycardia"]),
    "Sinus bradycardia": (["Sinus rhythm", "Bradycardia"], ["sinus bradycardia"]),
    "Sinus pause": ([], ["sinus {pause|pauses|arrest}"]),
    "Sinus block": ([], ["sinus block"]),
    # Fast. A bare "tachycardia" carries every kind that has no line of its own (narrow complex, regular, ...).
    "Tachycardia": ([], ["tachycardia"]),
    "Wide complex tachycardia": (["Tachycardia"], ["wide {complex|qrs} tachycardia"]),
    "Ventricular tachycardia": (["Tachycardia"], ["ventricular tachycardia"]),
    "Supraventricular tachycardia": (["Tachycardia"], ["supraventricular tachycardia"]),
    "Atrial tachycardia": (["Supraventricular tachycardia"], ["atrial tachycardia"]),
    "Ectopic atrial tachycardia": (["Atrial tachycardia"], ["ectopic atrial tachycardia"]),
    "Paroxysmal atrial tachycardia": (["Atrial tachycardia"], ["paroxysmal atrial tachycardia"]),
    "Junctional tachycardia": (["Tachycardia"], ["junctional tachycardia"]),
    "Rapid ventricular response": ([], ["rapid ventricular {response|rate}"]),
    "Slow ventricular response": ([], ["slow ventricular {response|rate}"]),
    "Uncontrolled ventricular response": ([], ["uncontrolled ventricular response"]),
    # Fibrillation and flutter are reentry, flutter in a circuit large enough to be a supraventricular tachycardia.
    "Reentry": (["Accessory pathway conduction"], []),
    "Reentry tachycardia": (["Reentry", "Tachycardia"], []),
    "Macro-reentry atrial tachycardia": (["Reentry tachycardia", "Atrial tachycardia"], []),
    "Atrial fibrillation": (["Tachycardia", "Reentry"], ["atrial fibrillation"]),
    "Atrial flutter": (["Macro-reentry atrial tachycardia"], ["[atrial] flutter"]),
    # Slow
    "Bradycardia": ([], ["bradycardia"]),
    "Junctional bradycardia": (["Bradycardia"], ["junctional bradycardia"]),
    "Atrial bradycardia": (["Bradycardia"], []),
    "Ectopic atrial bradycardia": (["Atrial bradycardia"], ["ectopic atrial bradycardia"]),
    "Idioventricular rhythm": (["Bradycardia"], ["idioventricular rhythm"]),
    "Accelerated idioventricular rhythm": ([], ["accelerated {idioventricular|ventricular} rhythm"]),
    # Other rhythms; in pieces, so that "accelerated junctional rhythm" is a rhythm that three words describe.
    "Rhythm": ([], ["rhythm"]),
    "Ectopic atrial rhythm": ([], ["ectopic atrial rhythm"]),
    "Undetermined rhythm": ([], ["undetermined rhythm"]),
    "Atrioventricular dissociation": ([], ["atrioventricular dissociation"]),
    # Early and ectopic beats
    "Premature ventricular contraction": (
        [],
        # Of lists of both chambers, only those in this order count as ventricular.
        ["premature ventricular {beat|beats}", "multiple premature beats, ventricular and supraventricular"],
    ),
    "Premature beat": ([], ["premature {atrial|junctional|supraventricular} {beat|beats|rhythm}"]),
    "Ectopic beat": ([], ["ectopic {atrial|junctional|supraventricular} {beat|beats}"]),
    "Escape beat": ([], ["{atrial|junctional|ventricular} escape [beat|beats|rhythm]"]),
    "Bigeminy": ([], ["{bigeminy|trigeminy|bigeminal}"]),
    # Words that describe beats ("aberrated complexes") need an entity to describe.
    "Beats": ([], ["{beats|complex|complexes}"]),
}

# From the atria to the ventricles, and through them.

CONDUCTION: dict[str, tuple[list[str], list[str]]] = {
    # Between atria and ventricles. A block without further words counts as one of these.
    "Atrioventricular block": ([], ["[atrioventricular] block"]),
    "Incomplete atrioventricular block": (["Atrioventricular block"], []),
    "1st degree atrioventricular block": (
        ["Incomplete atrioventricular block"],
        ["1st degree atrioventricular block"],
    ),
    "2nd degree atrioventricular block": (
        ["Incomplete atrioventricular block"],
        ["2nd degree atrioventricular block"],
    ),
    "Variable atrioventricular block": (
        ["2nd degree atrioventricular block"],
        ["variable {conduction|atrioventricular block}"],
    ),
    "High grade atrioventricular block": (
        ["2nd degree atrioventricular block"],
        # "2:1" is used of conduction too; "3:1" and "4:1" only of a block.
        ["high grade atrioventricular block", "{3:1|4:1} atrioventricular block"],
    ),
    "2:1 atrioventricular block": (["2nd degree atrioventricular block"], ["2:1 [atrioventricular block]"]),
    "Mobitz type 1 block": (
        ["2nd degree atrioventricular block"],
        ["atrioventricular block, mobitz type 1", "mobitz type 1 [2nd degree] [atrioventricular] block"],
    ),
    "Mobitz type 2 block": (
        ["2nd degree atrioventricular block"],
        [
            *("atrioventricular block, mobitz type 2", "mobitz type 2 [2nd degree] [atrioventricular] block"),
            "(mobitz type 2)",
        ],
    ),
    "3rd degree atrioventricular block": (
        ["Atrioventricular block", "Bradycardia"],
        ["complete atrioventricular block", "atrioventricular block, complete (3rd degree)"],
    ),
    "Short PR interval": ([], ["short pr"]),
    "Prolonged PR interval": ([], ["prolonged pr"]),
    # Bundle branches. With a fast rhythm they stand for aberrant conduction (see the compounds of `mimic17`).
    "Aberrant ventricular conduction": (
        [],
        ["{aberrancy|aberrant {beats}}", "abnormal ventricular conduction pathways"],
    ),
    "Bundle branch block": (["Aberrant ventricular conduction"], []),
    "Right bundle branch block": (["Bundle branch block"], ["right bundle branch block"]),
    "Left bundle branch block": (["Bundle branch block"], ["left bundle branch block"]),
    "Incomplete right bundle branch block": (["Right bundle branch block"], ["incomplete right bundle branch block"]),
    "Incomplete left bundle branch block": (["Left bundle branch block"], ["incomplete left bundle branch block"]),
    # Fascicles, which are no block between atria and ventricles
    "Fascicular block": ([], ["[left] fascicular block"]),
    "Left anterior fascicular block": (["Fascicular block"], ["{[left] anterior fascicular block|lafb}"]),
    "Left posterior fascicular block": (["Fascicular block"], ["{[left] posterior fascicular block|lpfb}"]),
    "Bifascicular block": (["Right bundle branch block"], []),
    # Slow within the ventricles
    "Intraventricular conduction delay": (
        [],
        ["{intraventricular {conduction defect|delay}|ivcd}", "{left|right} ventricular delay"],
    ),
    # Past the node
    "Accessory pathway conduction": ([], []),
    "Preexcitation": (["Accessory pathway conduction"], ["ventricular preexcitation"]),
    "Wolff-Parkinson-White syndrome": (["Preexcitation"], ["wpw"]),
    # In full the name counts only with its type; "WPW" needs none.
    "Wolff-Parkinson-White pattern by type": (
        ["Wolff-Parkinson-White syndrome"],
        ["{wpw|wolff-parkinson-white} pattern type {a|b}"],
    ),
}

# Electronic pacemakers.

PACING: dict[str, tuple[list[str], list[str]]] = {
    "Electronic pacemaker": ([], ["[electronic] pacemaker"]),
    "Pacing": (["Electronic pacemaker"], ["{pacing|paced rhythm}"]),
    "Demand pacing": (["Pacing"], ["demand [pacing]", "<demand pacing>"]),
    "Atrial pacing": (["Pacing"], ["atrial pacing"]),
    "Ventricular pacing": (["Pacing"], ["ventricular pacing"]),
    "Dual-chamber pacing": (["Ventricular pacing"], ["dual-chamber {pacing|electronic pacemaker}"]),
    "Atrioventricular sequential pacing": (["Dual-chamber pacing"], ["atrioventricular sequential [pacing]"]),
    "Sensing": (["Electronic pacemaker"], []),
    "Atrial sensing": (["Sensing"], ["atrial sensing"]),
    "Electronic pacemaker artifact": (["Electronic pacemaker"], []),
    "Electronic pacemaker spike": (
        ["Electronic pacemaker artifact"],
        ["electronic pacemaker {spike|spikes} [or {artifact|artifacts}]"],
    ),
    # A beat between a paced and an own one.
    "Fusion complex": (["Electronic pacemaker"], ["[ventricular] fusion [complex|complexes|beats]"]),
    "Electronic pacemaker malfunction": (["Electronic pacemaker"], []),
    "Loss of capture": (["Electronic pacemaker malfunction"], ["loss of capture"]),
    "Loss of sensing": (["Electronic pacemaker malfunction"], ["loss of sensing"]),
    "Ineffective stimuli": (["Electronic pacemaker malfunction"], ["ineffective stimuli"]),
}

# The recording itself: what is missing, disturbed or swapped, and the machine's remarks on its own reading.

# Some sentences of the machines occur with some leads only: chest electrodes are checked for their sequence between V2
# and V5, and V2 and V3 are never left out of the morphology.
SLOTS: dict[str, tuple[str, ...]] = {
    "beats": ("beats", "complex", "complexes"),
    "lead": LEADS,
    "sequence_lead": ("v2", "v3", "v4", "v5"),
    "morphology_lead": tuple(lead for lead in LEADS if lead not in ("v2", "v3")),
}

RECORDING: dict[str, tuple[list[str], list[str]]] = {
    "Poor data quality": (
        [],
        [
            "warning: data quality may affect [computer] interpretation",
            "poor quality data, interpretation may be affected",
        ],
    ),
    "Missing data": (
        ["Poor data quality"],
        [
            *("all 12 leads are missing", "summary: none available", "summary: available leads normal ecg"),
            *("normal ecg based on available leads", "incomplete analysis due to missing data in precordial lead(s)"),
        ],
    ),
    "Missing lead": (["Missing data"], ["[partial] missing lead {lead}"]),
    "Artifact": (["Poor data quality"], []),
    "Artifact in lead": (["Artifact"], ["artifact in lead {lead}"]),
    "Baseline wander in lead": (["Artifact in lead"], ["baseline wander in lead {lead}"]),
    "Lead not used": (["Poor data quality"], ["lead {morphology_lead} not used for morphology analysis"]),
    "Lead unsuitable for analysis": (
        ["Lead not used"],
        ["lead {lead} unsuitable for analysis", "faulty {sequence_lead} - omitted from analysis"],
    ),
    "Lead sequence error": (
        ["Lead unsuitable for analysis"],
        ["lead {sequence_lead} omitted due to [possible] sequence error"],
    ),
    "Not to be assessed": (
        ["Poor data quality"],
        [
            *("analysis error", "summary: technical error", "tracing unsuitable for analysis"),
            *("technically unsatisfactory tracing", "repeat ecg", "please repeat"),
            *("all 12 leads are missing", "summary: none available"),
        ],
    ),
    # Not a recording that failed, unlike "repeat ecg" by itself.
    "Technical error to exclude": ([], ["repeat ecg to exclude technical error"]),
    "Electrode reversal": (["Not to be assessed"], ["electrode reversal", "reversed"]),
    "Limb electrode reversal": (["Electrode reversal"], ["limb {lead reversal|leads reversed}"]),
    "Arm electrode reversal": (["Limb electrode reversal"], ["arm lead reversal"]),
}

# Recognised, so that they do not count as gaps, and without a meaning of their own. Descriptors before them describe
# no finding ("possible pattern").
IGNORED = [
    "age not entered, assumed to be 50 years old for purpose of ecg interpretation",
    *("interpretation is based on unpaced beats", "no further analysis", "pattern"),
]

# Muscle and chambers: infarction, repolarisation, size, axis; and the words that summarise a recording.

MYOCARDIUM: dict[str, tuple[list[str], list[str]]] = {
    # Infarction. Descriptors give territory and age, so that any territory goes with any age.
    "Ischemia": ([], ["[myocardial] ischemia"]),
    "Injury": (["Ischemia"], ["[myocardial] injury"]),
    "Infarction": (["Injury"], ["[myocardial] infarct"]),
    "Acute infarction": (["Infarction"], []),
    "ST elevation infarction": (["Acute infarction"], ["st elevation infarct"]),
    "Infarction extension": (["Infarction"], ["extension of infarct", "posterior extension"]),
    # ST segment, T wave, repolarisation
    "ST abnormality": ([], ["st wave {abnormality|abnormalities|changes}", "st [wave] deviation", "st elevation"]),
    "ST depression": (["ST abnormality"], ["{st|stj|st junctional} depression"]),
    "T wave abnormality": (
        [],
        ["t wave {abnormality|abnormalities|changes|inversion}", "{tall|prominent|low|inverted} t {wave|waves}"],
    ),
    "ST-T abnormality": (
        ["ST abnormality", "T wave abnormality"],
        ["st-t wave {abnormality|abnormalities|changes}"],
    ),
    "Repolarization abnormality": ([], ["repolarization {abnormality|abnormalities|changes}"]),
    "Early repolarization": ([], ["early repolarization"]),
    "QT prolongation": ([], ["prolonged qt"]),
    "Short QT": ([], ["short qt"]),
    "Pericarditis": ([], ["pericarditis"]),
    "Electrolytes or drugs": ([], ["{hyper|hypo}{kalemia|calcemia}", "digitalis effect"]),
    # QRS
    "QRS complex": ([], ["[wide] qrs", "rsr'", "qr"]),
    "Wave": ([], ["{p|q|r|t|u} [wave|waves]", "st-t"]),
    "R wave progression": ([], ["{poor|late|early} r wave progression", "{early|late} transition"]),
    "Tall R wave": (["Wave"], ["tall r [wave|waves]"]),
    "Delta wave": ([], ["delta wave"]),
    "Low QRS voltage": ([], ["low [qrs] {voltage|voltages}"]),
    # Size of the chambers
    "Atrial abnormality": ([], ["{left|right} atrial {abnormality|enlargement|hypertrophy}", "lae", "rae"]),
    "Biatrial enlargement": (["Atrial abnormality"], ["biatrial {enlargement|abnormality|hypertrophy}"]),
    "Ventricular hypertrophy": ([], ["[[left|right] ventricular] hypertrophy", "{lvh|rvh|bvh}"]),
    "Biventricular hypertrophy": (["Ventricular hypertrophy"], ["biventricular hypertrophy"]),
    "Voltage criteria for hypertrophy": ([], ["voltage criteria [for]"]),
    # Axis
    "Axis deviation": ([], ["{left|right|extreme} axis deviation", "{leftward|rightward|undetermined} axis"]),
    "Axis": (["Axis deviation"], ["{lad|rad}"]),
    # Elsewhere in the body
    "Other disease": (
        [],
        [
            *("pulmonary {disease|hypertension}", "cardiomyopathy", "congenital heart disease"),
            # The second is advice where the heart may lie on the right, and no doubt about this recording.
            *("dextrocardia", "repeat with reversed leads"),
            *("valvular disease", "{cva|cerebrovascular accident}", "hypertension"),
        ],
    ),
    # In sum
    "Normal ECG": ([], ["normal {ecg|variant}", "within normal limits"]),
    "Otherwise normal ECG": (["Normal ECG"], ["otherwise normal ecg", "normal ecg except for rate"]),
    "Borderline ECG": ([], ["borderline ecg"]),
    "Abnormal ECG": ([], ["abnormal ecg"]),
    "ECG": ([], ["ecg", "no previous ecg available", "pediatric ecg interpretation"]),
}

# Words that qualify a finding (how sure, where, how old, how much), and words that join findings.

# How sure, with the probability that remains. "May be normal variant" doubts that it is a finding at all.
CERTAINTY: dict[str, dict[str, Any]] = {
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

# How old: a word before the finding, or after it behind a comma or a hyphen.
AGE: dict[str, dict[str, Any]] = {
    "Acute": {"before": ["acute"], "after": [", [probably|possibly] acute"]},
    "Recent": {"before": ["recent"], "after": [", [probably|possibly] recent"]},
    "Old": {"before": ["old"], "after": [", old"]},
    "Age undetermined": {"after": ["[,|-] age undetermined", "of undetermined age"]},
}

# Where. A territory of two names is two territories.
TERRITORIES: dict[str, dict[str, Any]] = {
    "Anterior": {"before": ["anterior", "anteroseptal", "anterolateral"]},
    "Inferior": {"before": ["inferior", "inferolateral", "inferoposterior"]},
    "Lateral": {"before": ["lateral", "anterolateral", "inferolateral"]},
    "Posterior": {"before": ["posterior", "inferoposterior"]},
    "Septal": {"before": ["septal", "anteroseptal"]},
}
PLACES: dict[str, dict[str, Any]] = {
    **TERRITORIES,
    "High": {"before": ["high"]},
    "Atrial": {"before": ["atrial"]},
    "Junctional": {"before": ["junctional"]},
    "Ventricular": {"before": ["ventricular"]},
    "Supraventricular": {"before": ["supraventricular"]},
    "In leads": {"after": ["in {limb|precordial} leads", "in {lead}"]},
}

# How much, how often, of which kind.
KIND: dict[str, dict[str, Any]] = {
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
    # The beats named after it, of any kind, were conducted aberrantly.
    "Aberrated": {"before": ["aberrated"], "creates": ["Aberrant ventricular conduction"]},
}

DESCRIPTORS: dict[str, dict[str, Any]] = {**CERTAINTY, **AGE, **PLACES, **KIND}

# Either of what "or" joins is probable; what a sign suggests is too.
CONNECTIVES: dict[str, dict[str, Any]] = {
    **{word: {} for word in ("with", "and", "+", "to", "due to", "related to")},
    **{word: {"left": ["Probable"], "right": ["Probable"]} for word in ("or", "and/or")},
    **{word: {"right": ["Probable"]} for word in ("suggest", "suggests")},
    "consistent with": {"right": ["Possible"]},
    "conceivably related to": {},
}

FINDINGS: dict[str, tuple[list[str], list[str]]] = {
    **RHYTHM,
    **CONDUCTION,
    **PACING,
    **RECORDING,
    **MYOCARDIUM,
    "Needs clinical correlation": ([], []),
}
