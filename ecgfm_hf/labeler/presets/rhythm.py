"""Where the beat comes from, how fast it is, and the beats that come between."""

# Finding: (what follows from it, how normalised reports write it). For the grammar of phrases see `definition`.
FINDINGS = {
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
        # Of the two chambers that share their early beats in a list, only this order of words says "ventricular".
        ["premature ventricular {beat|beats}", "multiple premature beats, ventricular and supraventricular"],
    ),
    "Premature beat": ([], ["premature {atrial|junctional|supraventricular} {beat|beats|rhythm}"]),
    "Ectopic beat": ([], ["ectopic {atrial|junctional|supraventricular} {beat|beats}"]),
    "Escape beat": ([], ["{atrial|junctional|ventricular} escape [beat|beats|rhythm]"]),
    "Bigeminy": ([], ["{bigeminy|trigeminy|bigeminal}"]),
    # What is said of beats ("aberrated complexes") must have beats to say it of.
    "Beats": ([], ["{beats|complex|complexes}"]),
}
