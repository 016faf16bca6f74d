"""Patients: the traits that all recordings of a patient share, drawn from the patient's own random numbers."""

from dataclasses import dataclass

import numpy as np

from .dipoles import ATRIAL_FOCI, DOWER, P_WAVES, PACED_DIRECTIONS, REGIONS, T_VECTOR, VENTRICULAR_FOCI, small_rotation
from .noise import lognormal
from .settings import CohortSettings


def generator(seed: int, patient: int, visit: int | None = None) -> np.random.Generator:
    """
    Return the random numbers of one patient, or of one of their recordings (`visit`).

    They depend on these three numbers only: not on the size of the cohort, the order, or the process.
    """
    key = (patient,) if visit is None else (patient, visit)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


@dataclass(frozen=True)
class Patient:
    """
    A patient's lasting traits. Times are in s, voltages in mV, angles in radians, severities of bundle delays 0 to 1.

    `fibrillation` is "none", "paroxysmal" or "permanent". `matrix` (8, 3) is the lead matrix with this patient's heart
    position, chest and habitus. `ectopic_main` and `ectopic_terminal` (3,) are the directions of their ventricular
    beats, `paced_main` and `paced_terminal` of paced beats.
    """

    num_recordings: int
    age: int
    sex: str
    matrix: np.ndarray
    sinus_rate: float
    arrhythmia: float
    fibrillation: str
    pacemaker: str
    atrial_ectopy: bool
    ventricular_ectopy: bool
    pr: float
    qrs: float
    left_delay: float
    right_delay: float
    axis: float
    qtc: float
    wave_sizes: np.ndarray
    p_vectors: np.ndarray
    ectopic_p_vectors: np.ndarray
    t_vector: np.ndarray
    st_region: np.ndarray
    st_size: float
    t_region: np.ndarray
    t_size: float
    ectopic_main: np.ndarray
    ectopic_terminal: np.ndarray
    ectopic_duration: float
    ectopic_size: float
    paced_main: np.ndarray
    paced_terminal: np.ndarray
    paced_duration: float


def draw_patient(rng: np.random.Generator, settings: CohortSettings) -> Patient:
    """Draw a patient from the population in `settings`."""

    def either(share: float, usual: tuple[float, float], other: tuple[float, float]) -> float:
        return rng.normal(*(other if rng.random() < share else usual))

    shares = np.cumsum(settings.recordings_per_patient)
    num_recordings = 1 + min(int(np.searchsorted(shares, rng.random(), side="right")), len(shares) - 1)
    age = int(np.clip(rng.normal(*settings.age), 18, 95))
    sex = "Female" if rng.random() < 0.5 else "Male"

    rotation = small_rotation(np.radians(settings.heart_rotation_degrees) * rng.standard_normal(3))
    matrix = place_chest_electrodes(rng, DOWER @ rotation, settings.chest_placement)
    matrix = matrix * lognormal(rng, (1.0, settings.body_gain_log_sd))

    rhythm = rng.random()
    fibrillation = "none"
    if rhythm < settings.fibrillation_permanent:
        fibrillation = "permanent"
    elif rhythm < settings.fibrillation_permanent + settings.fibrillation_paroxysmal:
        fibrillation = "paroxysmal"
    pacemaker = "none"
    if rng.random() < settings.pacemaker:
        pacemaker = "dual chamber" if fibrillation != "permanent" and rng.random() < 0.75 else "ventricular"

    left = right = 0.0
    delay, severity = rng.random(), float(rng.uniform(*settings.bundle_delay_range))
    if delay < settings.left_bundle_delay:
        left = severity
    elif delay < settings.left_bundle_delay + settings.right_bundle_delay:
        right = severity
    else:  # the right ventricle is always a little late
        right = float(min(0.12, abs(rng.normal(0, 0.04))))

    turn, usual = rng.random(), rng.normal(*settings.axis_degrees)
    if turn < settings.left_axis_share:
        usual = rng.normal(*settings.left_axis_degrees)
    elif turn < settings.left_axis_share + settings.right_axis_share:
        usual = rng.normal(*settings.right_axis_degrees)

    foci = tuple(VENTRICULAR_FOCI.values())
    main, terminal = (np.array(v) + 0.15 * rng.standard_normal(3) for v in foci[rng.integers(len(foci))])
    paced_main, paced_terminal = (np.array(v) + 0.2 * rng.standard_normal(3) for v in PACED_DIRECTIONS)
    regions = tuple(REGIONS.values())
    # Most atrial foci lie low and spread upwards; some lie high, near the sinus node.
    focus = ATRIAL_FOCI["low" if rng.random() < 0.65 else "high"] + 0.02 * rng.standard_normal((2, 3))
    p_size = lognormal(rng, (1.0, settings.p_size_log_sd))
    t_size = lognormal(rng, (1.0, settings.t_size_log_sd))
    return Patient(
        num_recordings=num_recordings,
        age=age,
        sex=sex,
        matrix=matrix,
        sinus_rate=lognormal(rng, settings.sinus_rate),
        arrhythmia=min(lognormal(rng, settings.respiratory_arrhythmia), 0.22),
        fibrillation=fibrillation,
        pacemaker=pacemaker,
        atrial_ectopy=bool(rng.random() < settings.atrial_ectopy),
        ventricular_ectopy=bool(rng.random() < settings.ventricular_ectopy),
        pr=float(np.clip(either(settings.slow_av_node, settings.pr_ms, settings.slow_pr_ms), 118, 330)) / 1000,
        qrs=float(np.clip(rng.normal(*settings.qrs_ms), 72, 110)) / 1000,
        left_delay=left,
        right_delay=right,
        axis=float(np.radians(usual)),
        qtc=float(np.clip(either(settings.long_qt_share, settings.qtc_ms, settings.long_qtc_ms), 350, 580)) / 1000,
        wave_sizes=np.exp(settings.wave_shape_log_sd * rng.standard_normal(9)),
        p_vectors=p_size * np.array([v for _, _, v in P_WAVES]) + 0.012 * rng.standard_normal((2, 3)),
        ectopic_p_vectors=1.15 * p_size * focus,
        t_vector=t_size * T_VECTOR + 0.04 * rng.standard_normal(3),
        st_region=_unit(regions[rng.integers(len(regions))] + 0.2 * rng.standard_normal(3)),
        st_size=lognormal(rng, settings.st_mv if rng.random() < settings.st_share else settings.st_otherwise_mv),
        t_region=_unit(regions[rng.integers(len(regions))] + 0.2 * rng.standard_normal(3)),
        t_size=lognormal(
            rng,
            settings.t_inversion_mv if rng.random() < settings.t_inversion_share else settings.t_otherwise_mv,
        ),
        ectopic_main=main,
        ectopic_terminal=terminal,
        ectopic_duration=float(np.clip(rng.normal(0.146, 0.016), 0.12, 0.19)),
        ectopic_size=lognormal(rng, (1.15, 0.2)),
        paced_main=paced_main,
        paced_terminal=paced_terminal,
        paced_duration=float(np.clip(rng.normal(0.158, 0.014), 0.13, 0.20)),
    )


def place_chest_electrodes(rng: np.random.Generator, matrix: np.ndarray, amount: float) -> np.ndarray:
    """Return the (8, 3) lead matrix with errors of `amount` mV/mV in the rows of V1..V6, alike in neighbours."""
    errors = amount * rng.standard_normal((8, 3))
    placed = matrix.copy()
    placed[2:] += (errors[:6] + errors[1:7] + errors[2:]) / np.sqrt(3)
    return placed


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
