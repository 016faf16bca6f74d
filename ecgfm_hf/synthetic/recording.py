"""One synthetic recording: its samples, its labels, and the truth that they follow from."""

from dataclasses import asdict, dataclass, field

import numpy as np

from . import settings as limits
from .dipoles import (
    INDEPENDENT_LEADS,
    P_WAVES,
    REACH,
    BeatShape,
    add_waves,
    conducted_beat,
    frontal_axis,
    small_rotation,
    ventricular_beat,
)
from .noise import electrode_noise, fibrillation_waves, lognormal
from .patients import Patient, place_chest_electrodes
from .rhythm import (
    ATRIAL_PREMATURE,
    BEAT_KINDS,
    MARGIN,
    PACED,
    VENTRICULAR_PREMATURE,
    Beats,
    fibrillation_beats,
    paced_beats,
    sinus_beats,
)
from .settings import LABEL_NAMES, SEGMENT_SECONDS, CohortSettings

# The rows that `digitise` makes of the independent leads. (The extractor's list would import transformers.)
LEAD_NAMES = (*INDEPENDENT_LEADS[:2], "III", "aVR", "aVL", "aVF", *INDEPENDENT_LEADS[2:])
GAIN = 1000  # digital units per mV, as in most of PhysioNet 2021

# Rows of the independent leads, and pairs of neighbours: both must show an abnormal ST segment or T wave.
_I, _II, _V1 = 0, 1, 2
_LIMB = {"I": (1, 0), "II": (0, 1), "III": (-1, 1), "aVL": (1, -0.5), "aVF": (-0.5, 1)}  # of I and II
_ST_PAIRS = (("II", "aVF"), ("III", "aVF"), ("I", "aVL"), *((f"V{i}", f"V{i + 1}") for i in range(1, 6)))
_T_PAIRS = (("II", "aVF"), ("I", "aVL"), *((f"V{i}", f"V{i + 1}") for i in range(3, 6)))

# The ST segment's three Gaussians: centres and width as shares of the way from the J point to the T wave's peak. Their
# sum is flat between the first and the last; `_ST_SCALE` makes it 1 there.
_ST_AT, _ST_WIDTH = np.array([0.2, 0.5, 0.8]), 0.22
_ST_SCALE = 1 / (1 + 2 * np.exp(-0.5 * (0.3 / _ST_WIDTH) ** 2))


@dataclass(frozen=True, kw_only=True)
class SyntheticTruth:
    """
    The truth of a recording, by construction and without noise.

    Attributes:
        rhythm: "sinus", "fibrillation" or "paced".
        beat_times: Seconds from the recording's start to each beat's main QRS peak; only beats within the recording.
        beat_kinds: The kind of each beat, one of `rhythm.BEAT_KINDS`.
        rate: Beats/min of the underlying rhythm.
        pr_ms: From the onset of the P wave to the onset of the QRS complex; None without P waves.
        qrs_ms: Duration of the dominant beats' QRS complex.
        qt_ms: From its onset to the T wave's end.
        qtc_ms: QT at 60 beats/min by Fridericia's formula, minus the excess of the QRS complex over 95 ms.
        axis_degrees: Frontal QRS axis of the dominant beats, -180 to 180.
        st_mv: Largest ST elevation in two neighbouring leads, 60 ms after the J point, without the part that bundle
            branch block adds.
        t_mv: Lowest T wave in two neighbouring leads, among leads where it should be upright; likewise.
        left_bundle_delay, right_bundle_delay: Severities, 0 to 1; `qrs_ms` follows from them.
        arrhythmia: Change of sinus intervals with breathing, as a share.
        f_wave_mv: Size of fibrillation waves, or 0.
        noise: Amounts in mV, and the mains' frequency.
    """

    rhythm: str
    beat_times: tuple[float, ...]
    beat_kinds: tuple[str, ...]
    rate: float
    pr_ms: float | None
    qrs_ms: float
    qt_ms: float
    qtc_ms: float
    axis_degrees: float
    st_mv: float
    t_mv: float
    left_bundle_delay: float
    right_bundle_delay: float
    arrhythmia: float
    f_wave_mv: float
    noise: dict[str, float]

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False, kw_only=True)
class SyntheticRecording:
    """
    A synthetic 12-lead recording.

    Attributes:
        recording_id, patient_id: Both begin with "synthetic".
        samples: (12, n) int16, read-only; `GAIN` units are 1 mV.
        sampling_rate: Hz.
        lead_names: The twelve standard leads, in their usual order.
        age: Years.
        sex: "Female" or "Male".
        labels: 0 or 1 by name, in the order of `LABEL_NAMES`.
        segment_labels: The same for every segment of 5 s. A premature beat counts in the segment of its QRS peak, all
            other labels hold for the whole recording. A recording's label is the largest of its segments' labels.
        truth: The values that the labels follow from.
    """

    recording_id: str
    patient_id: str
    samples: np.ndarray = field(repr=False)
    sampling_rate: int
    age: int
    sex: str
    labels: dict[str, int]
    segment_labels: tuple[dict[str, int], ...] = field(repr=False)
    truth: SyntheticTruth = field(repr=False)
    lead_names: tuple[str, ...] = field(default=LEAD_NAMES, repr=False)

    @property
    def signal(self) -> np.ndarray:
        """(12, n) float64 in mV: the stored samples divided by the gain."""
        return self.samples / GAIN


@dataclass(frozen=True)
class _Visit:
    """The traits of one recording."""

    rhythm: str
    beats: Beats
    shapes: tuple[BeatShape, ...]  # by beat kind: conducted, aberrant, ventricular, paced
    pr: float
    qt: float
    qtc: float
    stretch: float  # of repolarisation with the rate
    st: np.ndarray
    t_vector: np.ndarray


def make_recording(
    rng: np.random.Generator,
    patient: Patient,
    settings: CohortSettings,
    sampling_rate: int,
    seconds: int,
    recording_id: str,
    patient_id: str,
) -> SyntheticRecording:
    """Make a recording of `patient`; `rng` decides what the patient's traits leave open."""
    repositioned = small_rotation(np.radians(settings.repositioning_degrees) * rng.standard_normal(3))
    matrix = place_chest_electrodes(rng, patient.matrix @ repositioned, settings.chest_placement / 2)
    visit = _draw_visit(rng, patient, settings, seconds, matrix)

    count = seconds * sampling_rate
    margin = round(MARGIN * sampling_rate)
    vcg = np.zeros((3, count + 2 * margin))
    _add_beats(rng, vcg, sampling_rate, margin, visit, patient)
    vcg = vcg[:, margin : margin + count]
    f_wave = 0.0
    if visit.rhythm == "fibrillation" or (visit.rhythm == "paced" and np.isnan(visit.beats.p_times).all()):
        f_wave = lognormal(rng, settings.f_wave_mv)
        vcg = vcg + fibrillation_waves(rng, count, sampling_rate, f_wave)
    leads = matrix @ vcg
    noise, amounts = electrode_noise(rng, count, sampling_rate, settings)
    leads += noise

    truth = _truth(visit, patient, matrix, seconds, f_wave, amounts)
    segments = tuple(_labels(truth, start, start + SEGMENT_SECONDS) for start in range(0, seconds, SEGMENT_SECONDS))
    return SyntheticRecording(
        recording_id=recording_id,
        patient_id=patient_id,
        samples=digitise(leads),
        sampling_rate=sampling_rate,
        age=patient.age,
        sex=patient.sex,
        labels={name: max(labels[name] for labels in segments) for name in LABEL_NAMES},
        segment_labels=segments,
        truth=truth,
    )


def digitise(leads: np.ndarray) -> np.ndarray:
    """
    Convert (8, n) mV of the independent leads to (12, n) int16.

    The four dependent leads are computed from the *stored* I and II. III and the sums of Einthoven's law are therefore
    exact, and Goldberger's leads are within half a digital unit.
    """
    # The lowest 16-bit value means "no sample" in WFDB.
    eight = np.clip(np.rint(leads * GAIN), -16383, 16383)
    out = np.empty((12, leads.shape[1]), dtype=np.int16)
    lead_i, lead_ii = eight[_I], eight[_II]
    out[0], out[1], out[2] = lead_i, lead_ii, lead_ii - lead_i
    out[3] = np.rint(-(lead_i + lead_ii) / 2)
    out[4] = np.rint(lead_i - lead_ii / 2)
    out[5] = np.rint(lead_ii - lead_i / 2)
    out[6:] = eight[_V1:]
    out.setflags(write=False)
    return out


def _draw_visit(
    rng: np.random.Generator, patient: Patient, settings: CohortSettings, seconds: int, matrix: np.ndarray
) -> _Visit:
    fibrillates = patient.fibrillation == "permanent" or (patient.fibrillation == "paroxysmal" and rng.random() < 0.5)
    rate = patient.sinus_rate * lognormal(rng, (1.0, settings.sinus_rate_visit_log_sd))
    rr = 60 / float(np.clip(rate, 38, 160))
    shares = [
        min(0.45, lognormal(rng, settings.ectopic_share)) if has and rng.random() < settings.ectopy_active else 0.0
        for has in (patient.atrial_ectopy, patient.ventricular_ectopy)
    ]
    atrial, ventricular = shares
    pr = float(np.clip(patient.pr + 0.005 * rng.standard_normal(), 0.115, 0.34))

    if patient.pacemaker != "none" and rng.random() < 0.9:
        rhythm = "paced"
        atria = patient.pacemaker == "dual chamber" and not fibrillates
        rr = float(np.clip(rr, 60 / 110, 60 / 60)) if atria else 60 / rng.uniform(58, 82)
        beats = paced_beats(rng, seconds, rr, atria, ventricular / 2, settings)
        pr = rng.uniform(0.14, 0.20)
    elif fibrillates:
        rhythm = "fibrillation"
        rr = 60 / float(np.clip(lognormal(rng, settings.fibrillation_rate), 45, 165))
        irregularity = float(np.clip(lognormal(rng, settings.fibrillation_irregularity), 0.08, 0.40))
        beats = fibrillation_beats(rng, seconds, rr, irregularity, ventricular, settings)
    else:
        rhythm = "sinus"
        beats = sinus_beats(rng, seconds, rr, patient.arrhythmia, atrial, ventricular, settings)
        # A P wave cannot precede the T wave before last: fast hearts conduct faster.
        pr = min(pr, 0.50 * 60 / beats.rate)

    stretch = float(np.cbrt(60 / beats.rate))
    qtc = patient.qtc + 0.006 * rng.standard_normal()
    st = patient.st_region * _shared_to_dipole(matrix, patient.st_region) * patient.st_size
    st = st * lognormal(rng, (1.0, settings.visit_log_sd)) + 0.05 * patient.t_vector
    inversion = patient.t_size * lognormal(rng, (1.0, settings.visit_log_sd))
    t_vector = patient.t_vector - 0.62 * inversion * patient.t_region

    axis = patient.axis + np.radians(2.0) * rng.standard_normal()
    left, right = patient.left_delay, patient.right_delay
    conducted = conducted_beat(patient.qrs, left, right, patient.wave_sizes, axis, t_vector, st)
    aberration = float(rng.uniform(0.1, 0.9)) if rng.random() < settings.atrial_aberration else 0.0
    aberrant = conducted_beat(
        patient.qrs, left, max(right, aberration if left < 0.2 else 0), patient.wave_sizes, axis, t_vector, st
    )
    ectopic = ventricular_beat(
        patient.ectopic_duration, patient.ectopic_main, patient.ectopic_terminal, patient.ectopic_size
    )
    paced = ventricular_beat(patient.paced_duration, patient.paced_main, patient.paced_terminal, 1.1)
    dominant = paced if rhythm == "paced" else conducted
    excess = max(0.0, dominant.end - dominant.onset - 0.095)
    qt = qtc * stretch + excess
    return _Visit(rhythm, beats, (conducted, aberrant, ectopic, paced), pr, qt, qtc, stretch, st, t_vector)


def _shared_to_dipole(matrix: np.ndarray, direction: np.ndarray) -> float:
    """Return the length of a dipole in `direction` that gives the best pair of neighbouring leads 1 mV of elevation."""
    shared = _shared(matrix @ direction, _ST_PAIRS, largest=True)
    # A direction that no pair shows well would need an enormous dipole.
    return 1 / max(shared, 0.45)


def _shared(values: np.ndarray, pairs: tuple[tuple[str, str], ...], largest: bool) -> float:
    """Return the largest elevation, or the lowest value, in two neighbouring leads of (8,) independent leads."""
    of = {f"V{i}": values[1 + i] for i in range(1, 7)}
    of |= {name: a * values[_I] + b * values[_II] for name, (a, b) in _LIMB.items()}
    if largest:
        return float(max(min(of[a], of[b]) for a, b in pairs))
    return float(min(max(of[a], of[b]) for a, b in pairs))


def _add_beats(
    rng: np.random.Generator, vcg: np.ndarray, sampling_rate: int, margin: int, visit: _Visit, patient: Patient
) -> None:
    """Add every wave of every beat to `vcg` (3, samples), whose sample `margin` is at time 0."""
    beats, shapes = visit.beats, visit.shapes
    row = np.select(
        [beats.kinds == ATRIAL_PREMATURE, beats.kinds == VENTRICULAR_PREMATURE, beats.kinds == PACED], [1, 2, 3], 0
    )
    inside = (beats.times > -MARGIN) & (beats.times < vcg.shape[1] / sampling_rate - MARGIN)
    times, row = beats.times[inside], row[inside]
    # Breathing moves heart and chest, which changes the size of whole beats.
    breath = 1 + 0.05 * np.sin(2 * np.pi * rng.uniform(0.17, 0.33) * times + rng.uniform(0, 2 * np.pi))
    breath *= 1 + 0.012 * rng.standard_normal(len(times))

    of_kind = [np.stack([getattr(shape, name) for shape in shapes]) for name in ("qrs_at", "qrs_width", "qrs_vectors")]
    at, widths, vectors = (values[row] for values in of_kind)
    add_waves(vcg, sampling_rate, margin, times, at, widths, vectors * breath[:, None, None], (0.11, 0.15))

    # Repolarisation: QT follows the mean rate, not single intervals; it is a little shorter after premature beats.
    onset = np.array([shape.onset for shape in shapes])
    end = np.array([shape.end for shape in shapes])
    excess = np.maximum(0, end - onset - 0.095)
    fall, rise = 0.036 * visit.stretch, 0.058 * visit.stretch
    qt = visit.qtc * visit.stretch + excess
    peak = onset + qt - REACH * fall
    peak[1] -= 0.015
    way = peak - end
    t_at = np.column_stack([peak, end[:, None] + way[:, None] * _ST_AT])
    t_width = np.empty((len(shapes), 4, 2))
    t_width[:, 0] = rise, fall
    t_width[:, 1:] = (way * _ST_WIDTH)[:, None, None]
    st_vectors = np.stack([shape.st_vector for shape in shapes]) * _ST_SCALE
    t_vectors = np.stack([np.stack([shape.t_vector for shape in shapes]), st_vectors, st_vectors, st_vectors], axis=1)
    after = float(max(peak.max() + 4 * fall, 0.3))
    vectors = t_vectors[row] * breath[:, None, None]
    add_waves(vcg, sampling_rate, margin, times, t_at[row], t_width[row], vectors, (0.05, after))

    # The onset of a P wave lies PR before the onset of its QRS complex.
    has_p = ~np.isnan(beats.p_times) & (beats.p_times > -MARGIN)
    has_p &= beats.p_times < vcg.shape[1] / sampling_rate - MARGIN
    p_onset = shapes[3].onset if visit.rhythm == "paced" else shapes[0].onset
    p_times = beats.p_times[has_p] + p_onset - visit.pr + 0.0015 * rng.standard_normal(np.count_nonzero(has_p))
    p_vectors = np.broadcast_to(patient.p_vectors, (len(p_times), 2, 3))
    # Premature atrial beats come from the patient's ectopic focus.
    ectopic = beats.kinds[has_p] == ATRIAL_PREMATURE
    p_vectors = np.where(ectopic[:, None, None], patient.ectopic_p_vectors, p_vectors)
    p_at, p_width = (np.array(values) for values in list(zip(*P_WAVES, strict=True))[:2])
    shape = (len(p_times), 2)
    add_waves(
        vcg,
        sampling_rate,
        margin,
        p_times,
        np.broadcast_to(p_at, shape),
        np.broadcast_to(p_width, shape),
        p_vectors,
        (0.03, 0.15),
    )
    if visit.rhythm == "paced":
        _add_spikes(rng, vcg, sampling_rate, margin, times[row == 3] + onset[3], p_times)


def _add_spikes(
    rng: np.random.Generator,
    vcg: np.ndarray,
    sampling_rate: int,
    margin: int,
    ventricular: np.ndarray,
    atrial: np.ndarray,
) -> None:
    """Add a pacemaker's pulses, large from unipolar electrodes and small from bipolar ones."""
    size = lognormal(rng, (0.9, 0.4)) if rng.random() < 0.4 else lognormal(rng, (0.16, 0.5))
    direction = np.array([0.5, 0.75, 0.25]) + 0.25 * rng.standard_normal(3)
    paces_atria = len(atrial) > 0 and rng.random() < 0.5
    times = np.concatenate([ventricular - 0.004, atrial - 0.004]) if paces_atria else ventricular - 0.004
    width = max(0.0011, 0.55 / sampling_rate)
    # A pulse is shorter than the sampling interval, so it looks different every time, as in real recordings.
    at, widths = np.zeros((len(times), 1)), np.full((len(times), 1), width)
    vectors = np.broadcast_to(size * direction, (len(times), 1, 3))
    add_waves(vcg, sampling_rate, margin, times, at, widths, vectors, (0.008, 0.008))


def _truth(
    visit: _Visit, patient: Patient, matrix: np.ndarray, seconds: int, f_wave: float, noise: dict[str, float]
) -> SyntheticTruth:
    beats = visit.beats
    inside = (beats.times >= 0) & (beats.times < seconds)
    dominant = visit.shapes[3] if visit.rhythm == "paced" else visit.shapes[0]
    way = dominant.onset + visit.qt - REACH * 0.036 * visit.stretch - dominant.end
    flatness = _ST_SCALE * np.exp(-0.5 * ((0.060 / way - _ST_AT) / _ST_WIDTH) ** 2).sum()
    has_p = not np.isnan(beats.p_times).all()
    qrs = dominant.end - dominant.onset
    return SyntheticTruth(
        rhythm=visit.rhythm,
        beat_times=tuple(beats.times[inside].round(5).tolist()),
        beat_kinds=tuple(BEAT_KINDS[kind] for kind in beats.kinds[inside]),
        rate=round(beats.rate, 3),
        pr_ms=round(1000 * visit.pr, 2) if has_p else None,
        qrs_ms=round(1000 * qrs, 2),
        qt_ms=round(1000 * visit.qt, 2),
        qtc_ms=round(1000 * visit.qtc, 2),
        axis_degrees=round(frontal_axis(dominant, matrix), 2),
        st_mv=round(_shared(matrix @ visit.st, _ST_PAIRS, largest=True) * float(flatness), 4),
        t_mv=round(_shared(matrix @ visit.t_vector, _T_PAIRS, largest=False), 4),
        left_bundle_delay=round(patient.left_delay, 4),
        right_bundle_delay=round(patient.right_delay, 4),
        arrhythmia=round(patient.arrhythmia, 4),
        f_wave_mv=round(f_wave, 4),
        noise={name: round(value, 5) for name, value in noise.items()},
    )


def _labels(truth: SyntheticTruth, start: float, end: float) -> dict[str, int]:
    """
    Return the labels of the part from `start` to `end` s.

    If a pacemaker drives the ventricles, the labels of conduction, axis, ST segment, T wave and QT are 0, since paced
    complexes do not show them.
    """
    here = {kind for time, kind in zip(truth.beat_times, truth.beat_kinds, strict=True) if start <= time < end}
    sinus, native = truth.rhythm == "sinus", truth.rhythm != "paced"
    wide = native and truth.qrs_ms >= limits.WIDE_QRS_MS
    values = {
        "sinus tachycardia": sinus and truth.rate > limits.TACHYCARDIA_BPM,
        "sinus bradycardia": sinus and truth.rate < limits.BRADYCARDIA_BPM,
        "atrial fibrillation": truth.f_wave_mv > 0,
        "premature atrial contraction": BEAT_KINDS[ATRIAL_PREMATURE] in here,
        "premature ventricular contractions": BEAT_KINDS[VENTRICULAR_PREMATURE] in here,
        "pacing rhythm": not native,
        "1st degree av block": sinus and truth.pr_ms is not None and truth.pr_ms > limits.LONG_PR_MS,
        "left bundle branch block": wide and truth.left_bundle_delay > truth.right_bundle_delay,
        "right bundle branch block": wide and truth.right_bundle_delay > truth.left_bundle_delay,
        "st elevation": native and truth.st_mv >= limits.ST_ELEVATION_MV,
        "t wave inversion": native and truth.t_mv <= limits.T_INVERSION_MV,
        "prolonged qt interval": native and truth.qtc_ms >= limits.LONG_QTC_MS,
        "left axis deviation": native and truth.axis_degrees < limits.LEFT_AXIS_DEGREES,
        "right axis deviation": native and truth.axis_degrees > limits.RIGHT_AXIS_DEGREES,
    }
    return {name: int(values[name]) for name in LABEL_NAMES}
