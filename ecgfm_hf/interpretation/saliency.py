"""
Saliency: attribution of a label's score to leads and samples, the published attention map, and deletion tests.

A map is given per lead and sample of the recording, in its own leads and sampling rate.
"""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor, PreparedRecording, canonical_lead_name, resample
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMPreTrainedModel
from ..pipeline_ecgfm import ECGClassificationPipeline
from ..records.record import ECGRecord
from ..utils.precision import evaluation_mode

logger = logging.getLogger(__name__)

METHODS = ("integrated_gradients", "attention")
SEGMENTS = ("deciding", "all")

# The path from the baseline to the recording is cut into pieces, and the integral is taken piece by piece. A norm over
# time follows the first convolution, so the model hardly depends on the size of its input until that is about as small
# as the norm's epsilon. Nearly all of the change happens in the first hundredths, which even steps would miss.
_CUTS = (0.0, *(4.0**power for power in range(-7, 1)))
_TOLERANCE = 0.05  # largest error of the sum of attributions, as a share of the difference between the logits
_SMALL_DIFFERENCE = 0.1  # taken in its place where the logits differ by less
_DOUBLINGS = 2
_BIN_SECONDS = 0.04  # of time that is deleted as one


@dataclass(frozen=True, eq=False, kw_only=True)
class Attribution:
    """
    A saliency map over a recording.

    Attributes:
        values: (leads, samples) float64, in the recording's own leads and rate. Integrated gradients: a sample's share
            of the logit, positive if it supports the label. Attention: 0 to 1, the same for all leads. NaN where the
            model had no input: seconds dropped at the end, leads that it does not take, missing samples, segments that
            were not attributed. 0 for a lead that was set to 0.
        lead_names: Of the rows.
        sampling_rate: Hz.
        label: The label's name; None for attention.
        method: One of `METHODS`.
        segments: Indices of the attributed segments.
        logits: (attributed segments,) the label's logit.
        baseline_logits: (attributed segments,) the label's logit for the baseline.
        deltas: (attributed segments,) the integration's error: the sum of all attributions minus
            `logits - baseline_logits`.
        elsewhere: (attributed segments,) the part of that sum that is not in `values`. It belongs to derived leads and
            to missing samples that were interpolated.
        warnings: From the feature extractor, and for segments whose integration is not complete.
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
        """Whether positive values support the label and negative values contradict it."""
        return self.method == "integrated_gradients"

    def smoothed(self, seconds: float = 0.04) -> np.ndarray:
        """
        Return `values` averaged over `seconds` around each sample, (leads, samples), ignoring NaN.

        This is for display only: single samples of a gradient alternate in sign.
        """
        width = max(1, round(seconds * self.sampling_rate))
        known = np.isfinite(self.values)
        kernel = np.ones(width)
        out = np.full(self.values.shape, np.nan)
        for row, (values, here) in enumerate(zip(self.values, known, strict=True)):
            if not here.any():
                continue
            # With mode "same" the result of a recording shorter than the kernel would be as long as the kernel.
            total, count = (
                np.convolve(part, kernel, mode="full")[(width - 1) // 2 :][: len(values)]
                for part in (np.where(here, values, 0.0), here.astype(np.float64))
            )
            out[row, here] = total[here] / count[here]
        return out


def attribute(
    model: ECGClassificationPipeline | ECGFMForMultiLabelClassification,
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
    Attribute the logit of `label` to samples of a recording, or return the published attention map over it.

    Integrated gradients (Sundararajan et al. 2017, by captum) follow a straight line from a baseline to the model's
    input. The baseline is zero: every lead stays at its mean over the recording. The recording's mean and standard
    deviation are kept constant. Each sample of the model's input was interpolated between two samples of the recording.
    Its share is divided among these two in the interpolation's proportion, so that sums are preserved.

    Each segment is attributed separately, to its own logit. Which segments are attributed depends on how
    `config.label_aggregation` combines them: for a `"max"` label only the segment with the largest logit, for a
    `"mean"` label all. `segments="all"` attributes all in any case.

    Args:
        model: A pipeline from `load_pipeline`, or an `ECGFMForMultiLabelClassification`.
        record: In mV, of any length and rate that the feature extractor accepts.
        label: The label's name; attention needs none.
        method: `"integrated_gradients"` or `"attention"`.
        feature_extractor: With a model; `ECGFMFeatureExtractor()` by default. A pipeline has its own.
        segments: `"deciding"` or `"all"`.
        steps: Gradients for each of the line's 8 pieces. The number is doubled up to twice while the sum of
            attributions differs from the difference between the logits by more than 5 %.
        batch_size: Gradients that are computed together.
        policies: The feature extractor's, such as `missing_leads="zero"`.

    Returns:
        [`Attribution`]

    Raises:
        ImportError: captum is not installed.
        ValueError: an unknown label, method or setting; a recording that the feature extractor refuses.
    """
    _check_choice("method", method, METHODS)
    _check_choice("segments", segments, SEGMENTS)
    classifier, extractor, settings = _classifier_and_extractor(model, feature_extractor, policies)
    prepared = extractor.prepare_recording(
        record.signal, record.sampling_rate, record.lead_names, "mV", name=record.path, **settings
    )
    inputs = torch.from_numpy(prepared.segments[:, :, : prepared.valid_samples])  # padding has no influence
    inputs = inputs.to(device=classifier.device, dtype=classifier.dtype)
    if method == "attention":
        chosen = list(range(len(inputs)))
        maps = np.repeat(attention_saliency(classifier, inputs)[:, None], inputs.shape[1], axis=1)
        no_logits = np.full(len(chosen), np.nan)
        logits = baseline = deltas = elsewhere = no_logits
        values, _ = _on_recording(maps, chosen, record, prepared, extractor, keep_sums=False)
        label, warnings = None, prepared.warnings
    else:
        number = _label_index(classifier, label)
        with evaluation_mode(classifier):
            with torch.no_grad():
                all_logits = np.array([float(classifier(segment[None]).logits[0, number]) for segment in inputs])
                start = float(classifier(torch.zeros_like(inputs[:1])).logits[0, number])
            chosen = list(range(len(inputs)))
            if segments == "deciding" and classifier.config.aggregations()[number] == "max":
                chosen = [int(all_logits.argmax())]
            logits, baseline = all_logits[chosen], np.full(len(chosen), start)
            maps = np.stack(
                [
                    _integrated_gradients(classifier, inputs[i], number, logit - start, steps, batch_size)
                    for i, logit in zip(chosen, logits, strict=True)
                ]
            )
        deltas = maps.sum(axis=(1, 2)) - (logits - baseline)
        values, elsewhere = _on_recording(maps, chosen, record, prepared, extractor, keep_sums=True)
        warnings = [*prepared.warnings, *_incomplete(chosen, deltas, logits - baseline)]
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


def _classifier_and_extractor(
    model: ECGClassificationPipeline | ECGFMForMultiLabelClassification,
    feature_extractor: ECGFMFeatureExtractor | None,
    policies: Mapping[str, str],
) -> tuple[ECGFMForMultiLabelClassification, ECGFMFeatureExtractor, dict[str, Any]]:
    """Return classifier, feature extractor and policies; the call's policies win over a pipeline's."""
    classifier: Any = model
    if isinstance(model, ECGClassificationPipeline):
        if feature_extractor is None and isinstance(model.feature_extractor, ECGFMFeatureExtractor):
            feature_extractor = model.feature_extractor
        policies = {**model._preprocess_params, **policies}
        classifier = model.model
    if not isinstance(classifier, ECGFMForMultiLabelClassification):
        raise ValueError(f"attribution needs a classifier with labels, found: {type(classifier).__name__}")
    return classifier, ECGFMFeatureExtractor() if feature_extractor is None else feature_extractor, dict(policies)


def _label_index(model: ECGFMForMultiLabelClassification, label: str | None) -> int:
    names = model.config.label_names
    if label not in names:
        raise ValueError(f"the model has no label {label!r}, found: {', '.join(names)}")
    return names.index(label)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, found: {value!r}")


def captum_attributions() -> Any:
    """Return captum's module of attribution methods; `ImportError` with the extra to install if it is missing."""
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("attributions need captum: pip install 'ecgfm-hf[saliency]'") from error
    return captum.attr


def _integrated_gradients(
    model: ECGFMForMultiLabelClassification,
    segment: torch.Tensor,
    number: int,
    difference: float,
    steps: int,
    batch_size: int,
) -> np.ndarray:
    """Return attributions (leads, samples) float64 of one segment, in the model's own leads and rate."""
    method = captum_attributions().IntegratedGradients(lambda values: model(values).logits)
    # For training, the model scales the gradient that reaches its convolutions. Here the true gradient is needed.
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
            texts.append(
                f"segment {number}: the sum of attributions differs by {delta:.3g} from the logit's difference of "
                f"{difference:.3g}: try more steps"
            )
            logger.warning(texts[-1])
    return texts


def _on_recording(
    maps: np.ndarray,
    chosen: list[int],
    record: ECGRecord,
    prepared: PreparedRecording,
    feature_extractor: ECGFMFeatureExtractor,
    keep_sums: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Transfer maps (segments, model leads, samples) to the recording's leads and samples.

    With `keep_sums` each value is divided among the samples that it was interpolated from. Otherwise the map is
    interpolated. Returns the values and, for each segment, the sum that belongs to no sample of the recording.
    """
    num_samples, width = record.samples.shape[1], prepared.valid_samples
    # A resampled ramp gives the position in the recording that each of the model's samples was taken from.
    ramp = np.arange(num_samples, dtype=np.float64)[None]
    positions = resample(ramp, record.sampling_rate, feature_extractor.sampling_rate)[0]
    model_row: dict[str | None, int] = {name: row for row, name in enumerate(feature_extractor.lead_names)}
    rows = [model_row.get(_standard_name(name)) for name in record.lead_names]
    missing = np.isnan(record.signal)
    values = np.full(record.samples.shape, np.nan)
    elsewhere = np.zeros(len(chosen))
    for order, number in enumerate(chosen):
        here = positions[number * width : (number + 1) * width]
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
                # Neighbouring segments may share a sample.
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


def attention_saliency(
    model: ECGFMPreTrainedModel, segments: torch.Tensor | np.ndarray, *, stretch: bool = True
) -> np.ndarray:
    """
    Return the attention map that ECG-FM's authors published.

    It takes the last layer's attention weights, averaged over heads, and each query frame's largest weight over all
    keys. Cubic splines stretch these to samples; each segment is scaled to minimum 0 and maximum 1.

    Attention is between frames, so the map is the same for all leads and all labels. It shows which frames the encoder
    attends to, not why a score is high: see [`attribute`] for that.

    Args:
        model: Any ECG-FM model.
        segments: (leads, samples) or (batch, leads, samples), standardised: the model's input, without padding.
        stretch: `False` returns the largest weights themselves, one per frame.

    Returns:
        (samples,) or (batch, samples) float64; without `stretch` (frames,) or (batch, frames) float32.

    Raises:
        ValueError: `segments` of another shape.
    """
    values = torch.as_tensor(segments)
    single = values.ndim == 2
    values = values[None] if single else values
    if values.ndim != 3:
        raise ValueError(f"segments must have shape (batch, leads, samples), found {tuple(values.shape)}")
    values = values.to(device=model.device, dtype=model.dtype)
    with evaluation_mode(model), torch.no_grad():
        weights = model.base_model(values, output_attentions=True).attentions[-1]
    largest = weights.float().mean(dim=1).amax(dim=-1).cpu().numpy()
    if stretch:
        largest = np.stack([_min_max(_stretch(frames, values.shape[-1])) for frames in largest])
    return largest[0] if single else largest


def _stretch(frames: np.ndarray, num_samples: int) -> np.ndarray:
    """Stretch (frames,) to (num_samples,) by a cubic spline; first and last frame lie on first and last sample."""
    from scipy.ndimage import map_coordinates

    positions = np.linspace(0, len(frames) - 1, num_samples)
    return map_coordinates(frames.astype(np.float64), positions[None], order=3, mode="nearest")


def _min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def most_salient_times(attribution: Attribution, share: float = 0.1) -> np.ndarray:
    """
    Return a mask (samples,) of the most salient `share` of the attributed time.

    Time is ranked in bins of 40 ms by the sum of values over leads and samples. Signed values keep their sign, so the
    mask marks what supports the label.

    Raises:
        ValueError: `share` is not between 0 and 1, or nothing was attributed.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, found: {share}")
    seen = np.isfinite(attribution.values).any(axis=0)
    if not seen.any():
        raise ValueError("the attribution is NaN everywhere")
    width = max(1, round(_BIN_SECONDS * attribution.sampling_rate))
    bins = np.arange(len(seen)) // width
    sums = np.bincount(bins, np.nansum(attribution.values, axis=0))
    sums[np.bincount(bins, seen) < width / 2] = -np.inf
    count = max(1, round(share * np.isfinite(sums).sum()))
    chosen = np.zeros(len(sums), dtype=bool)
    chosen[np.argsort(-sums, kind="stable")[:count]] = True
    return chosen[bins] & seen


def shifted_times(times: np.ndarray, within: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """
    Return the mask `times` (samples,), shifted in a circle by a random number of samples `within` another mask.

    This is a control for deletion: as many samples, in as many pieces of the same lengths, at another time.
    """
    allowed = np.flatnonzero(within)
    shifted = np.zeros_like(times)
    shifted[allowed] = np.roll(times[allowed], int(generator.integers(1, len(allowed))))
    return shifted


def delete_times(signal: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return a copy of (leads, samples) in which straight lines, without steps, replace each piece of `times`."""
    if times.all():
        raise ValueError("times covers the whole recording: a part must remain")
    out = np.array(signal, dtype=np.float64)
    kept = np.flatnonzero(~times)
    for lead in out:
        lead[times] = np.interp(np.flatnonzero(times), kept, lead[kept])
    return out


__all__ = [
    "METHODS",
    "SEGMENTS",
    "Attribution",
    "attention_saliency",
    "attribute",
    "captum_attributions",
    "delete_times",
    "most_salient_times",
    "shifted_times",
]
