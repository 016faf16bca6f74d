"""The published saliency: where the last layer's attention is sharpest. It knows no label and no lead."""

import numpy as np
import torch
from transformers.modeling_utils import PreTrainedModel

from ..utils.precision import evaluation_mode


def attention_saliency(
    model: PreTrainedModel, segments: torch.Tensor | np.ndarray, *, stretch: bool = True
) -> np.ndarray:
    """
    The attention map of ECG-FM's authors: attention weights of the last layer, averaged over heads; for each frame its
    largest weight, over all frames that it looks at; stretched to samples by cubic splines; minimum 0 and maximum 1 in
    each segment.

    Attention is over frames, so the map is the same for all leads, and it is the same for all labels. It tells where
    the encoder looks, not why a score is what it is: for that see [`attribute`].

    Args:
        model: Any ECG-FM model.
        segments: (leads, samples) or (batch, leads, samples), standardised: the model's input, without padding.
        stretch: `False` gives the largest weights themselves, a number a frame.

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
    """(frames,) to (num_samples,): a cubic spline from the first frame at the first sample to the last at the last."""
    from scipy.ndimage import map_coordinates

    positions = np.linspace(0, len(frames) - 1, num_samples)
    return map_coordinates(frames.astype(np.float64), positions[None], order=3, mode="nearest")


def _min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


__all__ = ["attention_saliency"]
