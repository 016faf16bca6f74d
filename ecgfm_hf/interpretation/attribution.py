"""What a label's score rests on, per lead and sample of the recording as it was recorded."""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor, PreparedRecording, canonical_lead_name, resample
from ..modeling_ecgfm import ECGFMForMultiLabelClassification
from ..records.record import ECGRecord
from ..utils.precision import evaluation_mode
from .attention import attention_saliency

logger = logging.getLogger(__name__)

METHODS = ("integrated_gradients", "attention")
SEGMENTS = ("deciding", "all")

# The way from the baseline to the recording, cut where the integral is taken piece by piece. A norm over time follows
# the first convolution, so the model hardly notices how large its input is, until that is about as small as the norm's
# epsilon: nearly all of the change happens in the first hundredths, which even steps would pass in one stride.
_CUTS = (0.0, *(4.0**power for power in range(-7, 1)))
_TOLERANCE = 0.05  # of the difference between the logits: by more the sum of attributions must not miss it
_SMALL_DIFFERENCE = 0.1  # of which the tolerance is taken where the logits hardly differ
_DOUBLINGS = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Attribution:
    """
    A map over a recording.

    Attributes:
        values: (leads, samples) float64, in the recording's own leads and rate. Integrated gradients: a sample's share
            of the logit, positive where it speaks for the label. Attention: 0 to 1, the same for all leads. NaN where
            the model saw nothing: seconds dropped at the end, leads that it does not take, missing samples, segments
            that were not attributed. 0 for a lead that it saw as dead.
        lead_names: of the rows.
        sampling_rate: Hz.
        label: its name; None for attention.
        method: one of `METHODS`.
        segments: numbers of the segments that were attributed.
        logits: (attributed segments,) of the label.
        baseline_logits: (attributed segments,) of the label, for the baseline.
        deltas: (attributed segments,) sum of all attributions less `logits - baseline_logits`: the integration's error.
        elsewhere: (attributed segments,) what of that sum is not in `values`, since it belongs to leads that were
            derived, or to samples that are missing and were bridged.
        warnings: those of the feature extractor, and segments whose integration is not complete.
    """

    values: np.ndarray = field(repr=False)
    lead_names: tuple[str, ...]
    sampling_rate: float
    label: str | None
    method: str
    segments: tuple[int, ...]
    logits: np.ndarray
    baseline_logits: np.ndarray
    deltas: np.ndarray
    elsewhere: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def signed(self) -> bool:
        """Whether values speak for (positive) and against (negative) a label."""
        return self.method == "integrated_gradients"

    def smoothed(self, seconds: float = 0.04) -> np.ndarray:
        """
        (leads, samples): `values` averaged over `seconds` around each sample, without what is NaN. For the eye only:
        single samples of a gradient alternate in sign.
        """
        width = max(1, round(seconds * self.sampling_rate))
        known = np.isfinite(self.values)
        kernel = np.ones(width)
        out = np.full(self.values.shape, np.nan)
        for row, (values, here) in enumerate(zip(self.values, known, strict=True)):
            if not here.any():
                continue
            # A recording may be shorter than the kernel, which "same" would then be as long as.
            total, count = (
                np.convolve(part, kernel, mode="full")[(width - 1) // 2 :][: len(values)]
                for part in (np.where(here, values, 0.0), here.astype(np.float64))
            )
            out[row, here] = total[here] / count[here]
        return out


def attribute(
    model: Any,
    record: ECGRecord,
    label: str | None = None,
    method: str = "integrated_gradients",
    *,
    feature_extractor: ECGFMFeatureExtractor | None = None,
    segments: str = "deciding",
    steps: int = 6,
    batch_size: int = 24,
    **policies: str,
) -> Attribution:
    """
    Attributes the logit of `label` to samples of a recording, or gives the published attention map over it.

    Integrated gradients (Sundararajan et al. 2017, by captum) go from a baseline to the model's input in a straight
    line. The baseline is zero: every lead rests at its mean over the recording. Mean and standard deviation of the
    recording are held fixed. Each sample of the model's input passes its share on to the two samples of the recording
    that it was interpolated between, in the interpolation's proportion, so that sums are kept.

    A segment is attributed on its own, to its own logit. A recording's score is made of its segments' as
    `config.label_aggregation` says: of a `"max"` label only the segment with the largest logit decides, and only that
    one is attributed; of a `"mean"` label, all. `segments="all"` attributes all in any case.

    Args:
        model: A pipeline from `load_pipeline`, or an `ECGFMForMultiLabelClassification`.
        record: In mV, of any length and rate that the feature extractor takes.
        label: Its name; attention needs none.
        method: `"integrated_gradients"` or `"attention"`.
        feature_extractor: With a model; a pipeline has its own. `ECGFMFeatureExtractor()` otherwise.
        segments: `"deciding"` or `"all"`.
        steps: Gradients for each of the line's 8 pieces, at first: they are doubled, and doubled again, while the sum
            of attributions misses the difference between the logits by more than 5 %.
        batch_size: How many of them are computed together.
        policies: The feature extractor's, such as `missing_leads="zero"`.

    Returns:
        [`Attribution`]

    Raises:
        ImportError: captum is not installed.
        ValueError: an unknown label, method or setting; a recording that the feature extractor refuses.
    """
    _check_choice("method", method, METHODS)
    _check_choice("segments", segments, SEGMENTS)
    model, feature_extractor, policies = _parts(model, feature_extractor, policies)
    prepared = feature_extractor.prepare_recording(
        record.signal, record.sampling_rate, record.lead_names, "mV", name=record.path, **policies
    )
    inputs = torch.from_numpy(prepared.segments[:, :, : prepared.valid_samples])  # padding has no say in an answer
    inputs = inputs.to(device=model.device, dtype=model.dtype)
    if method == "attention":
        chosen = list(range(len(inputs)))
        maps = np.repeat(attention_saliency(model, inputs)[:, None], inputs.shape[1], axis=1)
        nothing = np.full(len(chosen), np.nan)
        values, _ = _on_the_recording(maps, chosen, record, prepared, feature_extractor, keep_sums=False)
        return _attribution(values, record, None, method, chosen, nothing, nothing, nothing, nothing, prepared.warnings)

    number = _label_number(model, label)
    with evaluation_mode(model):
        with torch.no_grad():
            all_logits = np.array([float(model(one[None]).logits[0, number]) for one in inputs])
            start = float(model(torch.zeros_like(inputs[:1])).logits[0, number])
        chosen = list(range(len(inputs)))
        if segments == "deciding" and model.config.aggregations()[number] == "max":
            chosen = [int(all_logits.argmax())]
        logits, baseline = all_logits[chosen], np.full(len(chosen), start)
        maps = np.stack(
            [
                _integrated_gradients(model, inputs[i], number, logit - start, steps, batch_size)
                for i, logit in zip(chosen, logits, strict=True)
            ]
        )
    deltas = maps.sum(axis=(1, 2)) - (logits - baseline)
    warnings = [*prepared.warnings, *_incomplete(chosen, deltas, logits - baseline)]
    values, elsewhere = _on_the_recording(maps, chosen, record, prepared, feature_extractor, keep_sums=True)
    return _attribution(values, record, label, method, chosen, logits, baseline, deltas, elsewhere, warnings)


def _attribution(values, record, label, method, chosen, logits, baseline, deltas, elsewhere, warnings) -> Attribution:
    return Attribution(
        values=values,
        lead_names=record.lead_names,
        sampling_rate=record.sampling_rate,
        label=label,
        method=method,
        segments=tuple(chosen),
        logits=logits,
        baseline_logits=baseline,
        deltas=deltas,
        elsewhere=elsewhere,
        warnings=tuple(warnings),
    )


def _parts(model: Any, feature_extractor: ECGFMFeatureExtractor | None, policies: Mapping[str, str]):
    """Model, feature extractor and policies, of a pipeline or given one by one."""
    if not isinstance(model, torch.nn.Module):  # a pipeline; its policies stand behind the call's
        feature_extractor = model.feature_extractor if feature_extractor is None else feature_extractor
        policies = {**model._preprocess_params, **policies}
        model = model.model
    if not isinstance(model, ECGFMForMultiLabelClassification):
        raise ValueError(f"attributions are of a classifier's labels, found a {type(model).__name__}")
    return model, ECGFMFeatureExtractor() if feature_extractor is None else feature_extractor, dict(policies)


def _label_number(model: ECGFMForMultiLabelClassification, label: str | None) -> int:
    names = model.config.label_names
    if label not in names:
        raise ValueError(f"the model has no label {label!r}, found: {', '.join(names)}")
    return names.index(label)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, found: {value!r}")


def captum_attributions() -> Any:
    """captum's methods. `ImportError` says which extra brings them."""
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("attributions need captum: pip install 'ecgfm-hf[saliency]'") from error
    return captum.attr


def _integrated_gradients(
    model, segment: torch.Tensor, number: int, difference: float, steps: int, batch_size: int
) -> np.ndarray:
    """(leads, samples) float64 of one segment (leads, samples), in the model's own leads and rate."""
    method = captum_attributions().IntegratedGradients(lambda values: model(values).logits)
    # For training's sake the model scales whatever gradient reaches its convolutions.
    factor = float(model.config.feature_grad_multiplier) or 1.0
    for doubling in range(_DOUBLINGS + 1):
        total = np.zeros(segment.shape)
        for start, end in itertools.pairwise(_CUTS):
            piece = method.attribute(
                end * segment[None],
                baselines=start * segment[None],
                target=number,
                n_steps=steps * 2**doubling,
                internal_batch_size=batch_size,
            )
            total += piece[0].detach().double().cpu().numpy() / factor
        if _is_complete(total.sum() - difference, difference):
            break
    return total


def _is_complete(delta: float, difference: float) -> bool:
    return bool(abs(delta) <= _TOLERANCE * max(abs(difference), _SMALL_DIFFERENCE))


def _incomplete(chosen: list[int], deltas: np.ndarray, differences: np.ndarray) -> list[str]:
    texts = []
    for number, delta, difference in zip(chosen, deltas, differences, strict=True):
        if not _is_complete(delta, difference):
            text = f"attributions of segment {number} miss the logit's difference of {difference:.3g} by {delta:.3g}"
            texts.append(f"{text}: more steps may help")
            logger.warning(texts[-1])
    return texts


def _on_the_recording(
    maps: np.ndarray,
    chosen: list[int],
    record: ECGRecord,
    prepared: PreparedRecording,
    feature_extractor: ECGFMFeatureExtractor,
    keep_sums: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Maps (segments, model leads, samples) on the recording's leads and samples, and what of each finds no place there.

    With `keep_sums` a sample's number is divided among those that it was made of; without, the map is interpolated.
    """
    num_samples, width = record.samples.shape[1], prepared.valid_samples
    # Resampled, a ramp gives the place in the recording that each of the model's samples was taken from.
    ramp = np.arange(num_samples, dtype=np.float64)[None]
    places = resample(ramp, record.sampling_rate, feature_extractor.sampling_rate)[0]
    model_row = {name: row for row, name in enumerate(feature_extractor.lead_names)}
    rows = [model_row.get(_standard_name(name)) for name in record.lead_names]
    missing = np.isnan(record.signal)
    values = np.full(record.samples.shape, np.nan)
    elsewhere = np.zeros(len(chosen))
    for order, number in enumerate(chosen):
        here = places[number * width : (number + 1) * width]
        first, last = int(np.floor(here[0])), int(np.ceil(here[-1]))
        covered = np.arange(first, last + 1)
        left = np.minimum(np.floor(here).astype(np.intp), num_samples - 1)
        weight = here - left
        left, right = left - first, np.minimum(left + 1, last) - first
        for row, source in enumerate(rows):
            if source is None:
                continue
            if keep_sums:
                part = np.bincount(left, maps[order, source] * (1 - weight), minlength=len(covered))
                part += np.bincount(right, maps[order, source] * weight, minlength=len(covered))
                # Two segments may share a sample between them.
                values[row, covered] = np.nan_to_num(values[row, covered], nan=0.0) + part
                elsewhere[order] -= part[~missing[row, covered]].sum()
            else:
                values[row, covered] = np.interp(covered, here, maps[order, source])
        elsewhere[order] += maps[order].sum()
    values[missing] = np.nan
    return values, elsewhere


def _standard_name(name: str) -> str | None:
    try:
        return canonical_lead_name(name)
    except ValueError:
        return None


__all__ = ["METHODS", "SEGMENTS", "Attribution", "attribute"]
