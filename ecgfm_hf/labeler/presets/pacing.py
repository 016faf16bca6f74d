"""Electronic pacemakers."""

FINDINGS = {
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
