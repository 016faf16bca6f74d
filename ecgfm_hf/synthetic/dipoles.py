"""
The heart as a moving dipole: waves that are Gaussians in time along directions in space, and the leads that show them.

Axes are Frank's, as in the lead matrix: x to the patient's left, y to the feet, z to the back. Vectors are in mV.
"""

from dataclasses import dataclass

import numpy as np

# Dower, Machado & Osborne, "On deriving the electrocardiogram from vectorcardiographic leads", Clin. Cardiol. 3:87-95
# (1980), as quoted in Clifford, Azuaje & McSharry (eds.), "Advanced Methods and Tools for ECG Data Analysis" (2006),
# in the chapter of Bailón, Laguna & Sörnmo, and in Clifford's files beside it (README of idowerT.m), where the rows are
# V1..V6, I, II. The inverse that Edenbrandt & Pahlm published (J. Electrocardiol. 21:361, 1988) times this matrix is
# the identity within 7e-4, which three printed decimals allow; tests hold it to that.
INDEPENDENT_LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],  # I
        [0.235, 1.066, -0.132],  # II
        [-0.515, 0.157, -0.917],  # V1
        [0.044, 0.164, -1.387],  # V2
        [0.882, 0.098, -1.277],  # V3
        [1.213, 0.127, -0.601],  # V4
        [1.125, 0.127, -0.086],  # V5
        [0.831, 0.076, 0.230],  # V6
    ]
)
DOWER.setflags(write=False)

# A wave begins and ends where its outermost Gaussian falls to 4% of its peak.
REACH = 2.5

# Each wave of a QRS complex: (centre, width) as shares of its duration, direction and size in mV. Widths are standard
# deviations; first and last wave reach their 4% at the complex's onset and end.
# Septum from left to right, apex, free wall to the left and back, base upwards and back.
_NORMAL_QRS = (
    (0.19, 0.076, (-0.15, -0.02, -0.26)),
    (0.38, 0.080, (0.48, 0.44, -0.20)),
    (0.51, 0.080, (0.80, 0.60, 0.52)),
    (0.70, 0.105, (-0.10, -0.20, 0.42)),
)
# Left bundle branch block: septum from right to left, slow and notched through the left ventricle; no septal q.
_LEFT_BLOCK_QRS = (
    (0.22, 0.085, (0.35, 0.22, 0.14)),
    (0.41, 0.090, (0.78, 0.30, 0.62)),
    (0.60, 0.090, (0.56, 0.06, 0.72)),
    (0.77, 0.088, (0.72, 0.02, 0.52)),
)
# Right bundle branch block: the left ventricle as usual, then the right one late and slowly, to the right and front.
# Its one wave is placed from the end of the whole complex, in seconds: (before the end, width).
_RIGHT_BLOCK_WAVE = (0.049, 0.0190, (-0.54, -0.02, -0.86))

# Ventricular beats: main and terminal direction by the name of the focus. Each is a patient's mean.
VENTRICULAR_FOCI = {
    "right outflow tract": ((0.25, 1.15, 0.75), (0.45, 0.35, 0.75)),
    "right apex": ((0.75, -0.75, 0.65), (0.20, -0.85, 0.35)),
    "left free wall": ((-0.85, 0.25, -0.95), (-0.35, 0.55, -0.55)),
    "left posterior": ((-0.15, -0.95, -0.95), (0.45, -0.60, -0.25)),
}
# Centre and width as above, then the weights of the main and the terminal direction.
_VENTRICULAR_QRS = (
    (0.24, 0.096, 0.45, 0.00),
    (0.44, 0.105, 0.95, 0.10),
    (0.62, 0.100, 0.55, 0.50),
    (0.77, 0.092, 0.00, 0.60),
)
PACED_DIRECTIONS = ((0.70, -0.80, 0.60), (0.45, -0.70, 0.70))

# Right atrium downwards and forwards, then left atrium to the left and back: V1 goes up and down.
P_WAVES = ((0.042, 0.0168, (0.030, 0.105, -0.055)), (0.072, 0.0152, (0.085, 0.070, 0.045)))
# The same for a premature beat's P wave, by the height of its focus.
ATRIAL_FOCI = {
    "low": np.array([[0.045, -0.095, -0.050], [0.060, -0.085, 0.015]]),
    "high": np.array([[-0.030, 0.135, -0.080], [0.060, 0.060, 0.030]]),
}
T_VECTOR = np.array([0.31, 0.27, -0.20])
# Directions of the heart's current of injury (ST), and those opposite to an inverted T wave.
REGIONS = {
    "anterior": np.array([0.42, 0.10, -0.90]),
    "inferior": np.array([-0.15, 0.97, -0.10]),
    "lateral": np.array([0.93, -0.30, 0.10]),
}
_MAX_QRS_WAVES = 9


@dataclass(frozen=True)
class BeatShape:
    """
    One kind of beat, with time 0 at its fiducial point (the main wave's peak).

    Attributes:
        qrs_at, qrs_width: (9,) s: centres and standard deviations of the waves; unused waves have the vector 0.
        qrs_vectors: (9, 3) mV.
        onset, end: of the QRS complex, s.
        t_vector, st_vector: (3,) mV.
    """

    qrs_at: np.ndarray
    qrs_width: np.ndarray
    qrs_vectors: np.ndarray
    onset: float
    end: float
    t_vector: np.ndarray
    st_vector: np.ndarray


def conducted_beat(
    duration: float, left: float, right: float, shape: np.ndarray, axis: float, t_vector: np.ndarray, st: np.ndarray
) -> BeatShape:
    """
    Return a beat that is conducted through the bundles, with some delay of the left or the right one.

    Args:
        duration: Of the QRS complex without delay, s.
        left, right: Severities of the delays, 0 to about 1. [`block_duration`] gives their effect on the duration.
        shape: (9,) sizes of the single waves, 1 for the usual ones.
        axis: Rotation of the left ventricle's waves in the frontal plane, radians; positive turns it to the right.
        t_vector: (3,) mV, the T wave without delay; a delayed bundle adds its opposite ("secondary change").
        st: (3,) mV, the ST segment.
    """
    whole = block_duration(duration, left, right)
    weight = min(1.0, 1.25 * left)
    waves = [(at * duration, width * duration, size, 1 - weight) for at, width, size in _NORMAL_QRS]
    waves += [(at * whole, width * whole, size, weight) for at, width, size in _LEFT_BLOCK_QRS]
    before_end, width, size = _RIGHT_BLOCK_WAVE
    waves.append((whole - before_end, width, size, min(1.0, 1.1 * right)))
    at, widths, sizes, weights = (np.array(values) for values in zip(*waves, strict=True))
    vectors = sizes * (weights * shape)[:, None]
    vectors[:-1] = vectors[:-1] @ frontal_rotation(axis).T  # a hemiblock turns only the left ventricle
    fiducial = 0.48 * (duration * (1 - weight) + whole * weight)
    secondary = weight * np.array([-0.62, -0.12, -0.42]) + right * np.array([0.10, 0.02, 0.34])
    return BeatShape(at - fiducial, widths, vectors, -fiducial, whole - fiducial, t_vector + secondary, st)


def block_duration(duration: float, left: float, right: float) -> float:
    """Return the QRS duration in s with the bundles' delays: 70 ms more for a complete left one, 62 for a right one."""
    return duration + 0.070 * left + 0.062 * right


def ventricular_beat(duration: float, main: np.ndarray, terminal: np.ndarray, size: float) -> BeatShape:
    """Return a beat from the ventricles or a pacemaker's electrode; its T wave points the other way."""
    at, width, main_weight, terminal_weight = np.array(_VENTRICULAR_QRS).T
    vectors = size * (main_weight[:, None] * main + terminal_weight[:, None] * terminal)
    blank = np.zeros(_MAX_QRS_WAVES - len(at))
    fiducial = 0.48 * duration
    return BeatShape(
        np.concatenate([at * duration - fiducial, blank]),
        np.concatenate([width * duration, blank + 0.01]),
        np.concatenate([vectors, np.zeros((len(blank), 3))]),
        -fiducial,
        duration - fiducial,
        -0.38 * size * (main + 0.4 * terminal),
        -0.07 * size * main,
    )


def frontal_rotation(angle: float) -> np.ndarray:
    """Return the (3, 3) rotation about the axis from front to back; positive radians turn left towards the feet."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def small_rotation(angles: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation by (3,) radians about x, y and z, one after another."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def frontal_axis(beat: BeatShape, matrix: np.ndarray) -> float:
    """
    Return the electrical axis of the QRS complex in degrees, -180 to 180, from the areas under leads I and aVF.

    `matrix` (8, 3) has the rows of `INDEPENDENT_LEADS`. aVF is multiplied by 2 / sqrt(3), the factor that Goldberger's
    leads are too small by. The late wave of right bundle branch block is excluded, as readers do.
    """
    area = matrix[:2] @ (beat.qrs_vectors * beat.qrs_width[:, None])[:-1].sum(axis=0)
    lead_i, avf = area[0], area[1] - area[0] / 2
    return float(np.degrees(np.arctan2(avf * 2 / np.sqrt(3), lead_i)))


def add_waves(
    vcg: np.ndarray,
    sampling_rate: float,
    origin: int,
    times: np.ndarray,
    at: np.ndarray,
    widths: np.ndarray,
    vectors: np.ndarray,
    half_window: tuple[float, float],
) -> None:
    """
    Add Gaussian waves to a vectorcardiogram, in place.

    Args:
        vcg: (3, samples) mV; sample i is at (i - origin) / sampling_rate s.
        times: (events,) s; `at`, `widths` (events, waves): centres after the event and standard deviations in s, the
            latter optionally (events, waves, 2) for the sides before and after the peak.
        vectors: (events, waves, 3) mV.
        half_window: (before, after) the event in s; the waves are negligible outside. Windows are cut at the ends of
            `vcg`.
    """
    if len(times) == 0:
        return
    before, after = half_window
    length = int(np.ceil((before + after) * sampling_rate)) + 1
    start = np.ceil((times - before) * sampling_rate).astype(np.int64)
    # Time of every sample of every window, relative to its event, to a fraction of a sample.
    clock = (start / sampling_rate - times)[:, None, None] + np.arange(length) / sampling_rate
    z = clock - at[:, :, None]
    if widths.ndim == 3:
        z *= np.where(z < 0, (1 / widths[..., 0])[:, :, None], (1 / widths[..., 1])[:, :, None])
    else:
        z *= (1 / widths)[:, :, None]
    np.square(z, out=z)
    z *= -0.5
    np.exp(z, out=z)
    added = vectors.transpose(0, 2, 1) @ z
    samples = vcg.shape[1]
    for event, first in enumerate((start + origin).tolist()):
        low, high = max(first, 0), min(first + length, samples)
        if low < high:
            vcg[:, low:high] += added[event, :, low - first : high - first]
