"""From the atria to the ventricles, and through them."""

FINDINGS = {
    # Between atria and ventricles. Whatever block says no more of itself is counted here.
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
        # Two beats to one are said of conduction too; three and four only of a block.
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
    "Aberrant ventricular conduction": ([], ["{aberrancy|aberrant {beats}}"]),
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

SLOTS = {"beats": ["beats", "complex", "complexes"]}
