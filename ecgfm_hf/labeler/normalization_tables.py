"""
Tables of the normalisation: canonical words on the left, their variants in reports on the right.

Their effect is equal to the original's tables (about 700 rules in sequence). They are the project's own, grouped so
that a few passes are enough.
"""

# A signature, or a comparison with an earlier recording, ends the findings of this recording.
CUTS = ("confirmed by", "compared to the previous ecg", "compared to the ecg performed")
# Words that introduce a comparison and are removed with it.
CUT_LEADS = ("no significant change when ", "when ", "also ", "re-")

# Abbreviations that differ from a word ("at") or a lead ("aVR") only in their capitals.
CASE_SENSITIVE = {
    "EAT": "ectopic atrial tachycardia",
    "AT": "atrial tachycardia",
    "AVR": "accelerated ventricular rhythm",
    **{f"{name}'s": f"{name}s" for name in ("PAC", "APB", "APC", "PVC", "VPB", "PSC", "SVPB", "PJC", "ECG")},
}

# Words that keyboards get wrong: neighbouring letters swapped, one left out, doubled, a key beside it or another vowel.
# First the stems that the original repairs, then the stems of its abbreviations and machine sentences.
MISTYPED = (
    "fascicular artifact artifacts atrial atrioventricular biventricular idioventricular intraventricular junctional "
    "supraventricular ventricular lateral anterolateral anteroseptal septal aberrant aberrantly aberrancy aberration "
    "bundle branch degree fibrillation flutter infarct infarction ischemia mobitz preexcitation wenckebach "
    "bradycardia tachycardia rhythm sinus accelerated incomplete conducted conduction capture complexes contractions "
    "ectopic electronic paced pacemaker pacing premature reversal unsuitable wander"
)
# Common spellings that are more than one slip away.
MISSPELLED = {
    "aberrant": ("abberant", "aberant"),
    "aberrantly": ("abberantly",),
    "wenckebach": ("wenckeback", "wenkeback", "wenchebach"),
}

# Passes of bordered phrases. Within a pass the longest phrase at a position wins and its outcome is not read again;
# a later pass reads what earlier ones wrote.
PHRASE_PASSES: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "ecg": ("electrocardiogram", "ekg"),
        "degree": ("deg",),
        "1st degree": ("first degree", "first-degree", "1st-degree", "1 degree", "1-degree", "1*", "1 deg", "1st deg"),
        "2nd degree": (
            "second degree",
            "second-degree",
            "2nd-degree",
            "2 degree",
            "2-degree",
            "2*",
            "2 deg",
            "2nd deg",
        ),
        "3rd degree": ("third degree", "third-degree", "3rd-degree", "3 degree", "3-degree", "3*", "3 deg", "3rd deg"),
        "high grade": ("high-grade", "high degree", "high-degree"),
        "2:1": ("2 to 1", "2-to-1"),
        # Infarction
        "infarct": (*("infarction", "mi", "mis", "mi(s)", "infract", "infraction", "wall damage"),),
        "acute infarct": ("ami",),
        "ischemia": ("ischaemia",),
        # Bundle branches and fascicles
        "right bundle branch block": ("rbbb", "rbb", "right branch block", "right bundle-branch block"),
        "left bundle branch block": ("lbbb", "lbb", "left branch block", "left bundle-branch block"),
        "bundle branch block": ("bbb", "bundle-branch block"),
        "bundle branch": ("bundle-branch",),
        "incomplete right bundle branch block": ("irbbb", "incrbbb", "inc rbbb", "inc. rbbb", "incomp rbbb"),
        "incomplete left bundle branch block": ("ilbbb", "inclbbb", "inc lbbb", "inc. lbbb", "incomp lbbb"),
        "complete right bundle branch block": ("crbbb",),
        "complete left bundle branch block": ("clbbb",),
        # Conduction from the atria
        "atrioventricular": ("av", "a-v", "a v", "atrio-ventricular", "atrio ventricular"),
        "atrioventricular block": (
            *("avb", "av block", "a-v block", "av-block", "a v block", "hb", "heart block", "heart-block"),
            *("av nodal block", "av-nodal block", "a-v nodal block", "atrioventricular nodal block"),
        ),
        "complete atrioventricular block": ("chb",),
        "mobitz type 1": (
            *("mobitz i", "mobitz 1", "mobitz type i", "mobitz-i", "mobitz-1", "mobitz type-1", "mobitz type-i"),
            *("wenckebach", "mobitz 1 wenckebach", "mobitz i wenckebach"),
        ),
        "mobitz type 2": (
            *("mobitz ii", "mobitz 2", "mobitz type ii", "mobitz-ii", "mobitz-2", "mobitz type-2", "mobitz type-ii"),
        ),
        "type 1": ("type i",),
        "type 2": ("type ii",),
        "type 3": ("type iii",),
        # Fast and slow
        "tachycardia": ("tach", "tachy", "tachyarrhythmia"),
        "bradycardia": ("brady", "bradyarrhythmia"),
        "sinus tachycardia": ("stach",),
        "atrial tachycardia": ("atach",),
        "multifocal atrial tachycardia": ("mat",),
        "paroxysmal atrial tachycardia": ("pat",),
        "ventricular tachycardia": ("vt",),
        "supraventricular tachycardia": ("svt",),
        "paroxysmal supraventricular tachycardia": ("psvt",),
        # The original's mistake ("NSVT" is a ventricular one), kept for its labels; `mimic17_clinical` mends it.
        "nonsustained supraventricular tachycardia": ("nsvt",),
        "paroxysmal ventricular tachycardia": ("pvt",),
        "atrioventricular nodal reentry tachycardia": ("avnrt",),
        "atrioventricular reentry tachycardia": ("avrt",),
        # Fibrillation and flutter
        "atrial fibrillation": ("af", "afib", "a-fib", "a fib", "a fibrillation", "a-fibrillation", "atrial fib"),
        "atrial flutter": ("afl", "aflutter", "a-flutter", "a flutter", "aflut", "a-flut", "a flut"),
        "fibrillation": ("fib",),
        "flutter": ("flut",),
        "ventricular fibrillation": ("vf", "vfib", "v-fib", "v fib"),
        # Beats that come too early
        "premature ventricular beat": ("pvc", "vpb"),
        "premature ventricular beats": ("pvcs", "pvc(s)", "vpbs", "vpb(s)"),
        "premature atrial beat": ("pac", "apb", "apc"),
        "premature atrial beats": ("pacs", "pac(s)", "apbs", "apb(s)", "apcs", "apc(s)"),
        "premature junctional beat": ("pjc",),
        "premature junctional beats": ("pjcs", "pjc(s)"),
        "premature supraventricular beat": ("psc", "svpb"),
        "premature supraventricular beats": ("pscs", "psc(s)", "svpbs", "svpb(s)"),
        "ventricular ectopic": ("ve",),
        "ventricular ectopic beat": ("veb",),
        "ventricular ectopic beats": ("vebs", "veb(s)"),
        "ectopic beat": ("extrasystole",),
        "ectopic beats": ("extrasystoles", "extrasystole(s)"),
        "beat": ("contraction",),
        "beats": ("contractions", "contraction(s)"),
        # Aberrancy
        "aberrancy": ("aberrant conduction", "aberrant ventricular conduction", "aberration"),
        "aberrated": tuple(
            f"{how} {what}" for how in ("aberrant", "aberrantly") for what in ("conducted", "conducting")
        ),
        # Pacemakers
        "pacemaker": ("pacer",),
        "sensing": ("sense", "sensed", "tracking"),
        "dual-chamber": ("dual chamber",),
        "dual-chamber pacing": ("dual paced", "dual-paced"),
        "biventricular": ("biv", "bi-ventricular", "bi ventricular"),
        # Words for words
        "intraventricular": ("iv", "intra-ventricular"),
        "ventricular": ("vent",),
        "supraventricular": ("supraven",),
        "right ventricular": ("rv",),
        "left ventricular": ("lv",),
        "delay": ("conduction delay",),
        "block": ("conduction block",),
        "right ventricular delay": ("rv conduction delay",),
        "left ventricular delay": ("lv conduction delay",),
        "preexcitation": ("pre-excitation", "pre excitation"),
        "reentry": ("re-entry", "re-entrant", "reentrant", "re entry"),
        "nonspecific": ("non-specific", "non specific"),
        "nonsustained": ("non-sustained", "non sustained"),
        "undetermined": ("indeterminate", "unknown"),
        "probably": ("likely", "prob", "most probably", "most likely"),
        "nonconducted": ("blocked", "dropped", "non-conducted", "non conducted"),
        "rapid": ("fast", "elevated"),
        "short": ("abbreviated", "shortened"),
        "wide": ("broad",),
        "variable": ("varying",),
        "repolarization": ("repolarisation", "re-polarization", "repol"),
        "st-t": ("st and t", "st t", "st/t", "stt"),
        "st elevation": ("st-elevation", "st segment elevation", "st-segment elevation"),
        "qt": ("qtc", "qt interval", "qtc interval", "qt/qtc interval", "qt intervals"),
        "pr": ("pr interval", "p-r interval", "p-r", "pr intervals"),
        "rp": ("rp interval",),
        "abnormality": ("abn", "abnrm"),
        "": ("wall", "but"),
    },
    {
        # What the first pass has put together.
        "atrioventricular block": (
            "atrioventricular-block",
            *("atrioventricular nodal block", "atrioventricular-nodal block", "atrioventricular conduction block"),
        ),
        "infarct": ("wall infarct", "infarct infarct"),
        "atrial fibrillation": ("a fibrillation", "a-fibrillation", "atrial atrial fibrillation"),
        "atrial flutter": ("atrial atrial flutter",),
        "mobitz type 1": ("mobitz mobitz type 1",),
        "incomplete right bundle branch block": ("inc right bundle branch block", "inc. right bundle branch block"),
        "incomplete left bundle branch block": ("inc left bundle branch block", "inc. left bundle branch block"),
    },
)

# Sentences about the report itself, and words without a meaning for findings.
FINAL_PHRASES = {
    "beats": ("beat(s)",),
    "conceivably related to": ("may be related to", "are probably related to"),
    " may be": (", may be",),
    "": ("for age/sex",),
}

# Sentences about information that the machine did not have, or that ask for another recording if injury is suspected.
NOTICES = (
    r"repeat(?: ecg)? if (?:[a-z]+ ){0,3}injury (?:is )?suspected",
    r"interpretation made without know[a-z]* (?:of )?(?:the )?patient's age(?:/sex| and sex| or sex)?",
)

LEADS = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6")
# A list of leads in a sentence becomes one sentence a lead. In this order: "missing" also takes "partial missing".
LEAD_LISTS = (
    (r"lead(?:\(s\))? unsuitable for analysis: ?{leads}", "lead {lead} unsuitable for analysis"),
    (r"missing lead(?:\(s\))?: ?{leads}", "missing lead {lead}"),
    (r"partial missing lead(?:\(s\))?: ?{leads}", "partial missing lead {lead}"),
    (r"artifact in lead(?:\(s\))?:? {leads}", "artifact in lead {lead}"),
    (r"baseline wander in lead(?:\(s\))?:? {leads}", "baseline wander in lead {lead}"),
    (
        r"lead(?:\(s\))? {leads} (?:was|were) not used for morphology analysis",
        "lead {lead} not used for morphology analysis",
    ),
    (r"possible sequence error: ?{leads} omitted", "lead {lead} omitted due to possible sequence error"),
    (r"sequence error: ?{leads} omitted", "lead {lead} omitted due to sequence error"),
)

_BEAT = r"(?:beat|contraction|complex|depolarization|depolarisation)"
_BEATS = r"(?:beats|contractions|complexes|depolarizations|depolarisations)"
_SEVERAL = rf"(?:{_BEATS}|{_BEAT}\((?:e?s)\))"
_CHAMBER = r"(supraventricular|ventricular|atrial|junctional|nodal|idioventricular)"
_PACED = (
    r"(atrial|a|biventricular|biv|ventricular|v|atrioventricular sequential|atrioventricular|dual-chamber|vvi|ddd|aai)"
)
_PACING = r"(?:pacemaker|pacing|paced|pace)(?: detected)?(?: (?:rhythm|beats?|complex(?:es)?|pacemaker))?"
_ATRIAL = r"(flutter|fibrillation|tachycardia|capture|sensing)"
_WAVE = r"(st-t|st|t|r)"
_INTERVAL = r"(qt|pr|qtu)"
_LONG, _SHORT = r"(?:prolonged|long|prolongation(?: of)?)", r"(?:short|shortening(?: of)?)"
_VERB = r"(?:interval )?(?:is|appears|has|are) "
# Families of phrases, in this order: a sign without which none of a family's rules changes anything, and the rules.
FAMILIES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (r"demand", ((rf"demand[ -]{_PACED}[ -]{_PACING}", r"\1 pacing <demand pacing>"),)),
    (
        "pac",
        (
            (rf"{_PACED}[ -]{_PACING}", r"\1 pacing"),
            (rf"(?:paced|pacing) {_PACED}(?: (?:rhythm|beats?|complex(?:es)?))?", r"\1 pacing"),
            (
                r"(?:electronic )?(?:pacemaker|pacing|paced) (spikes?|artifacts?|malfunctions?)",
                r"electronic pacemaker \1",
            ),
            (r"(?:electronic )?(?:pacemaker|pacing|paced) (?:beats?|complex(?:es)?)", "electronic pacemaker "),
        ),
    ),
    ("abnormalit", ((rf"{_WAVE} (?:wave )?abnormalit(y|ies)", r"\1 wave abnormalit\2"),)),
    ("abnormal ", ((rf"abnormal {_WAVE}(?: waves?)?", r"\1 wave abnormality"),)),
    ("change", ((rf"{_WAVE} changes?", r"\1 wave changes"),)),
    ("atrial", ((rf"atrial {_ATRIAL}(?:/| or |-| ){_ATRIAL}", r"atrial \1 atrial \2"),)),
    (
        r"premature(?! (?:ventricular|atrial|junctional|supraventricular) beats?\b)",
        (
            (
                r"multiple premature complexes, ventricular and supraventricular",
                "multiple premature beats, ventricular and supraventricular",
            ),
            (rf"(?:premature {_CHAMBER} {_SEVERAL}|{_CHAMBER} prematures)", r"premature \1\2 beats"),
            (rf"{_CHAMBER} premature {_SEVERAL}", r"premature \1 beats"),
            (rf"(?:premature {_CHAMBER}|{_CHAMBER} premature) {_BEAT}", r"premature \1\2 beat"),
            (rf"{_CHAMBER} premature (?:arrhythmia|rhythm)", r"premature \1 rhythm"),
            (rf"premature {_SEVERAL}", r"premature beats"),
        ),
    ),
    (
        "ectop",
        (
            (
                rf"(?:ectopic {_CHAMBER} {_SEVERAL}|{_CHAMBER} ectopic {_SEVERAL}|{_CHAMBER} (?:ectopics|ectopy))",
                r"ectopic \1\2\3 beats",
            ),
            (rf"(?:ectopic {_CHAMBER}|{_CHAMBER} ectopic) {_BEAT}", r"ectopic \1\2 beat"),
            (rf"(?:ectopic {_CHAMBER}|{_CHAMBER} ectopic) (?:arrhythmia|rhythm)", r"ectopic \1\2 rhythm"),
        ),
    ),
    ("idioventricular arr", ((r"idioventricular arrhythmia", "idioventricular rhythm"),)),
    (
        "complex",
        (
            (rf"{_CHAMBER} (?:complexes|complex\(es\))", r"\1 beats"),
            (rf"{_CHAMBER} complex", r"\1 beat"),
        ),
    ),
    ("long", ((rf"(?:{_LONG} {_INTERVAL}|{_INTERVAL} (?:{_VERB}{_LONG}|prolonged))", r"prolonged \1\2"),)),
    ("short", ((rf"(?:{_SHORT} {_INTERVAL}|{_INTERVAL} (?:{_VERB})?{_SHORT})", r"short \1\2"),)),
)

# What may follow a comma or a hyphen and qualify what stands before it.
QUALIFIERS = (
    *("normal", "abnormal", "borderline", "acute", "biventricular", "accelerated", "recent", "old", "rate-related"),
)
