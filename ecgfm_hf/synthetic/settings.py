"""
Labels of the synthetic cohort, and the frozen defaults of its population.

All figures of the population are here. They were chosen so that the labels are neither trivial nor noise, and frozen
before any training figure was published. A change of a figure, or of the use of random numbers, makes another cohort
and raises `COHORT_VERSION`.
"""

import math
from dataclasses import dataclass, fields

from ..utils.errors import SettingsError

COHORT_VERSION = 1

SEGMENT_SECONDS = 5  # of the segments that have labels of their own: the model's input

# Thresholds are from common clinical definitions; the severities behind them are continuous on both sides.
TACHYCARDIA_BPM, BRADYCARDIA_BPM = 100.0, 60.0
LONG_PR_MS = 200.0
WIDE_QRS_MS = 120.0
LONG_QTC_MS = 460.0
ST_ELEVATION_MV = 0.10
T_INVERSION_MV = -0.10
LEFT_AXIS_DEGREES, RIGHT_AXIS_DEGREES = -30.0, 90.0
PREMATURE_FRACTION = 0.15  # an atrial beat is premature if it comes earlier by this share of the interval

# Name -> SNOMED CT code as in PhysioNet 2021 (the first of a merged pair). Every table has this order.
LABELS = {
    "sinus tachycardia": "427084000",
    "sinus bradycardia": "426177001",
    "atrial fibrillation": "164889003",
    "premature atrial contraction": "284470004",
    "premature ventricular contractions": "427172004",
    "pacing rhythm": "10370003",
    "1st degree av block": "270492004",
    "left bundle branch block": "733534002",
    "right bundle branch block": "713427006",
    "st elevation": "164931005",
    "t wave inversion": "59931005",
    "prolonged qt interval": "111975006",
    "left axis deviation": "39732003",
    "right axis deviation": "47665007",
}
LABEL_NAMES = tuple(LABELS)
SINUS_RHYTHM_CODE = "426783006"  # in headers, beside the labels


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """
    The population of a cohort.

    Shares are probabilities for each patient or recording. Pairs are (mean, standard deviation), or (median, standard
    deviation of the logarithm) where a comment states it.

    Raises:
        `SettingsError`: a share outside 0 to 1, or a spread or amount that is negative or not finite.
    """

    # Patients
    recordings_per_patient: tuple[float, ...] = (0.45, 0.30, 0.15, 0.10)  # shares of 1, 2, 3, 4 recordings
    age: tuple[float, float] = (61.0, 17.0)
    body_gain_log_sd: float = 0.18  # body habitus: all voltages together
    heart_rotation_degrees: float = 10.0  # of the heart in the chest about each axis, for each patient
    repositioning_degrees: float = 3.0  # the same between recordings of one patient
    chest_placement: float = (
        0.05  # of the lead matrix's chest rows, mV/mV, for each patient; half of it for each recording
    )
    wave_shape_log_sd: float = 0.14  # sizes of single waves, for each patient
    t_size_log_sd: float = 0.30
    p_size_log_sd: float = 0.30

    # Rhythm
    sinus_rate: tuple[float, float] = (73.0, 0.19)  # median beats/min and log sd, for each patient
    sinus_rate_visit_log_sd: float = 0.17
    respiratory_arrhythmia: tuple[float, float] = (0.03, 0.70)  # median share of RR and log sd
    fibrillation_permanent: float = 0.09
    fibrillation_paroxysmal: float = 0.08
    fibrillation_rate: tuple[float, float] = (88.0, 0.25)  # median and log sd
    fibrillation_irregularity: tuple[float, float] = (0.19, 0.30)  # coefficient of variation of RR: median and log sd
    f_wave_mv: tuple[float, float] = (0.060, 0.50)  # median and log sd
    pacemaker: float = 0.09
    atrial_ectopy: float = 0.30  # patients who have them at all
    ventricular_ectopy: float = 0.24
    ectopic_share: tuple[float, float] = (0.19, 0.50)  # of beats, in a recording with ectopy: median and log sd
    ectopy_active: float = 0.85  # recordings of such a patient
    atrial_coupling: tuple[float, float] = (0.45, 0.89)  # range of (interval before) / (usual interval)
    atrial_aberration: float = 0.60  # recordings whose premature atrial beats find the right bundle unready
    atrial_pause: float = 0.45  # largest delay of the sinus node after such a beat, as a share of the interval
    ventricular_coupling: tuple[float, float] = (0.50, 0.88)

    # Conduction
    pr_ms: tuple[float, float] = (156.0, 16.0)
    slow_av_node: float = 0.20
    slow_pr_ms: tuple[float, float] = (220.0, 26.0)
    qrs_ms: tuple[float, float] = (92.0, 7.0)
    left_bundle_delay: float = 0.15  # patients with some delay, complete or not
    right_bundle_delay: float = 0.18
    bundle_delay_range: tuple[float, float] = (0.10, 1.0)  # severity, uniform; about 0.4 makes 120 ms
    axis_degrees: tuple[float, float] = (0.0, 20.0)  # rotation of the frontal QRS axis, which is then near 50
    left_axis_share: float = 0.22
    left_axis_degrees: tuple[float, float] = (-88.0, 22.0)
    right_axis_share: float = 0.14
    right_axis_degrees: tuple[float, float] = (64.0, 20.0)

    # Repolarisation
    qtc_ms: tuple[float, float] = (412.0, 18.0)
    long_qt_share: float = 0.20
    long_qtc_ms: tuple[float, float] = (486.0, 26.0)
    st_share: float = 0.17
    st_mv: tuple[float, float] = (0.30, 0.42)  # median and log sd of the elevation in the worst lead, where present
    st_otherwise_mv: tuple[float, float] = (0.022, 0.60)
    t_inversion_share: float = 0.22
    t_inversion_mv: tuple[float, float] = (0.95, 0.35)  # median and log sd of the dipole that opposes the T wave
    t_otherwise_mv: tuple[float, float] = (0.08, 0.60)
    visit_log_sd: float = 0.20  # of ST and T severities between recordings of one patient

    # Noise: medians in mV (of one electrode) and log sd
    white_mv: tuple[float, float] = (0.006, 0.30)
    muscle_mv: tuple[float, float] = (0.012, 0.70)
    wander_mv: tuple[float, float] = (0.070, 0.60)
    mains_mv: tuple[float, float] = (0.005, 0.90)
    mains_60_hz: float = 0.5
    contact_share: float = 0.15  # recordings in which an electrode jumps
    contact_mv: tuple[float, float] = (0.35, 0.60)

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            values = values if isinstance(values, tuple) else (values,)
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise SettingsError(f"{field.name} is {getattr(self, field.name)!r}, expected finite numbers")
            if isinstance(field.default, float) and not _allowed(field.name, values[0]):
                raise SettingsError(f"{field.name} is {values[0]!r}, which is out of range")
            if isinstance(field.default, tuple) and field.name != "recordings_per_patient" and len(values) != 2:
                raise SettingsError(f"{field.name} is {values!r}, expected a pair")
        shares = self.recordings_per_patient
        if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise SettingsError(f"recordings_per_patient is {shares!r}, expected shares that add up to 1")
        for one, other in (
            ("fibrillation_permanent", "fibrillation_paroxysmal"),
            ("left_axis_share", "right_axis_share"),
            ("left_bundle_delay", "right_bundle_delay"),
        ):
            if getattr(self, one) + getattr(self, other) > 1:
                raise SettingsError(f"{one} and {other} add up to more than 1; a patient has at most one of them")


_AMOUNTS = ("_sd", "_degrees", "_placement")  # name endings of single numbers that are not shares


def _allowed(name: str, value: float) -> bool:
    return value >= 0 and (name.endswith(_AMOUNTS) or value <= 1)
