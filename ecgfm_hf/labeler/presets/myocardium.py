"""Muscle and chambers: infarction, repolarisation, size, axis; and the words that sum a recording up."""

FINDINGS = {
    # Infarction. Where and how old is said by descriptors, so that any territory goes with any age.
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
            *("pulmonary {disease|hypertension}", "dextrocardia", "cardiomyopathy", "congenital heart disease"),
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
