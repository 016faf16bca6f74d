"""The way back from segments to voltages, which a segment's file has to tell."""

import numpy as np

from ...feature_extraction_ecgfm import STANDARD_LEADS, ECGFMFeatureExtractor, resample
from ...records.record import ECGRecord
from .manifests import FairseqFolderError

# Rounding of float32 leaves 1e-7 of a lead's range.
_LARGEST_RESIDUE = 1e-4


def mean_and_std(
    record: ECGRecord, segments: np.ndarray, extractor: ECGFMFeatureExtractor
) -> tuple[np.ndarray, np.ndarray]:
    """
    What turns a recording's segments back into its voltages: `std * segment + mean`, in mV.

    The extractor does not tell what it divided by. Its segments do, laid beside the voltages they were made from: of
    each lead the straight line through both.

    Args:
        record ([`ECGRecord`])
        segments (`np.ndarray` of shape `(n, 12, samples)`): What the extractor made of it.

    Returns:
        Two `np.ndarray` `(12,)` float64. Where a lead is 0 throughout, std is 0 and mean the lead's own, or 0 if the
        recording lacks it.

    Raises:
        `FairseqFolderError`: a lead that is no straight line of its voltages, such as one derived from others.
    """
    voltages = resample(record.signal, record.sampling_rate, extractor.sampling_rate)
    mean, std = np.zeros(len(STANDARD_LEADS)), np.zeros(len(STANDARD_LEADS))
    for row, lead in enumerate(STANDARD_LEADS):
        values = segments[:, row].reshape(-1).astype(np.float64)
        if lead not in record.lead_names:
            if values.any():
                raise FairseqFolderError(f"lead {lead} was derived: its voltages are not in the recording")
            continue
        volts = voltages[record.lead_names.index(lead), : len(values)]
        known = np.isfinite(volts)
        if not known.any():
            continue
        if not values.any():
            mean[row] = volts[known].mean()
            continue
        centred = values[known] - values[known].mean()
        std[row] = (centred @ volts[known]) / (centred @ centred) if centred.any() else 0.0
        mean[row] = volts[known].mean() - std[row] * values[known].mean()
        residue = np.abs(std[row] * values[known] + mean[row] - volts[known]).max()
        if not std[row] > 0 or residue > _LARGEST_RESIDUE * np.ptp(volts[known]):
            raise FairseqFolderError(f"lead {lead} does not give its voltages back: off by up to {residue:.3g} mV")
    return mean, std
