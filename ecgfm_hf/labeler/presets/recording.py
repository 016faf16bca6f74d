"""The recording itself: what is missing, disturbed or swapped, and what the machine says of its own reading."""

LEADS = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6")

# The machines name leads in sentences of their own, and some sentences know only some leads: chest electrodes are
# checked for their sequence between V2 and V5, and V2 and V3 are never left out of the morphology.
SLOTS = {
    "lead": LEADS,
    "sequence_lead": ("v2", "v3", "v4", "v5"),
    "morphology_lead": tuple(lead for lead in LEADS if lead not in ("v2", "v3")),
}

FINDINGS = {
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
    # Not a recording that failed, unlike "repeat ecg" alone.
    "Technical error to exclude": ([], ["repeat ecg to exclude technical error"]),
    "Electrode reversal": (["Not to be assessed"], ["electrode reversal", "reversed"]),
    "Limb electrode reversal": (["Electrode reversal"], ["limb {lead reversal|leads reversed}"]),
    "Arm electrode reversal": (["Limb electrode reversal"], ["arm lead reversal"]),
}

# Recognised, so that they are not taken for gaps, and without a meaning of their own; what describes them describes
# no finding ("possible pattern").
IGNORED = [
    "age not entered, assumed to be 50 years old for purpose of ecg interpretation",
    *("interpretation is based on unpaced beats", "no further analysis", "pattern"),
]
