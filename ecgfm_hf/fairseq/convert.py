"""Conversion of a fairseq-signals checkpoint to a Transformers model folder."""

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..model_folder import OPTIMIZER_FILE, STATE_FILE, load_model, save_model_folder
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining
from ..provenance import PROVENANCE_FILE, ProvenanceError, add_step, file_digest, read_steps, versions
from ..utils.errors import OutputExistsError, SettingsError
from ..utils.files import atomic_folder
from ..utils.integrity import CHECKSUMS_FILE
from .checkpoint import CheckpointError, FairseqCheckpoint, load_fairseq_checkpoint
from .label_sets import PUBLISHED_LABELS, LabelSet
from .published import HUB_SCHEME, INPUT_SETTINGS, download_checkpoint, recognise, resolve_input
from .reference import check_differences, verify_conversion
from .settings import ConvertedSettings, config_from_checkpoint
from .state_dict import FAIRSEQ_PREFIX, ModelKind, convert_state_dict, has_old_weight_norm, revert_state_dict
from .training_state import TrainingState, read_training_state, save_training_state

ConvertedModel = ECGFMForPreTraining | ECGFMForMultiLabelClassification
ConvertedT = TypeVar("ConvertedT", bound=ConvertedModel)

_MODEL_CLASSES: dict[ModelKind, type[ConvertedModel]] = {
    "pretraining": ECGFMForPreTraining,
    "classification": ECGFMForMultiLabelClassification,
}
CARD_FILE = "README.md"
# Files that a conversion writes. A folder with any other file is not overwritten.
_WRITTEN_FILES = (
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "*_ecgfm.py",
    PROVENANCE_FILE,
    CHECKSUMS_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
)


@dataclass(frozen=True)
class ConversionReport:
    """
    The result of a conversion.

    Args:
        checkpoint: The source.
        output_dir: The folder written; `None` after a dry run.
        model_class: `"ECGFMForPreTraining"` or `"ECGFMForMultiLabelClassification"`.
        config: The model's configuration.
        lead_names: Leads that the feature extractor delivers, in order.
        num_parameters: Of the whole model, equal to the source's.
        parameters: Of each top-level module.
        num_updates: Training updates of the weights so far; `None` if the file has no count.
        training: The training state that was carried over, or why none was, in words.
        input_settings: Sampling rate, segment length and standardisation of the feature extractor.
        published: The published checkpoint that the file is, by the caller's word or by its name and number of labels.
        warnings: Each setting that was replaced, assumed, missing or not carried over.
        differences: With `verify`, the largest difference of each output, as in [`verify_conversion`].
    """

    checkpoint: Path
    output_dir: Path | None
    model_class: str
    config: ECGFMConfig
    lead_names: tuple[str, ...]
    num_parameters: int
    parameters: dict[str, int] = field(default_factory=dict)
    num_updates: int | None = None
    training: TrainingState | str = ""
    input_settings: dict[str, Any] = field(default_factory=dict)
    published: str | None = None
    warnings: tuple[str, ...] = ()
    differences: dict[str, float] | None = None

    @property
    def largest_difference(self) -> float | None:
        """The largest of `differences`; `None` without verification."""
        return None if self.differences is None else max(self.differences.values())


def convert_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    *,
    labels: str | Path | Sequence[str] | LabelSet | None = None,
    heads: int | None = None,
    like: str | Path | None = None,
    lead_names: Sequence[str] | None = None,
    sampling_rate: float | None = None,
    segment_seconds: float | None = None,
    standardize: str | None = None,
    keep_leads: Sequence[str] | None = None,
    verify: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    card: Callable[[Mapping[str, Any], ConvertedModel], str] | None = None,
    published: str | None = None,
) -> ConversionReport:
    """
    Write a fairseq-signals checkpoint as a model folder: weights (safetensors, float32), config, feature extractor.

    The folder is written whole or not at all, and holds no path of the source. A pretraining's training state (Adam's
    moments and the counters) is written beside the model, for `resume_from_checkpoint` of a pretraining run.

    Args:
        checkpoint: The `.pt` file, pretrained or fine-tuned, or its address on the Hub: `hf://OWNER/NAME/FILE`.
        output_dir: New or empty folder.
        labels: A classifier's labels, as in [`resolve_labels`]. By default those of the published checkpoint that the
            file is; otherwise `LABEL_0`, `LABEL_1`, ...
        heads, like, lead_names: As in [`config_from_checkpoint`].
        sampling_rate, segment_seconds, standardize: The input that the model was trained with, as in
            [`ECGFMFeatureExtractor`]. Required unless the file contains it or is a published checkpoint.
        keep_leads: Leads to keep. The first convolution is cut to them: the model computes what the whole one computes
            where the other leads are 0.
        verify: Read the written folder again, compare its tensors with the source's bit by bit, and its outputs with
            [`reference_forward`].
        overwrite: Replace `output_dir` if it is an ECG-FM model folder.
        dry_run: Do everything, but do not keep the folder.
        card: `(step, model) -> text` of a model card for `README.md`; `step` is the conversion's entry in the
            provenance file.
        published: Name of the published checkpoint that the file is, by the caller's word; for the provenance file.

    Raises:
        `CheckpointError`: the checkpoint cannot be read or converted, or `verify` found a difference.
        `SettingsError`: `labels`, `heads` or `lead_names` do not fit the checkpoint.
        `UnknownInputError`: the input that the model was trained with is neither given nor known.
        `InputNotFoundError`: a given file does not exist.
        `DownloadError`: the Hub cannot be reached or refuses, and the cache does not have the file.
        `OutputExistsError`: `output_dir` holds something that must not be replaced.
    """
    output_dir = Path(output_dir).resolve()
    check = partial(_check_output, output_dir, Path(checkpoint), overwrite)
    check()
    if os.fspath(checkpoint).startswith(HUB_SCHEME):
        checkpoint = download_checkpoint(os.fspath(checkpoint))
    source = load_fairseq_checkpoint(checkpoint)
    known = published or recognise(source)
    if labels is None and known is not None and "proj.weight" in source.tensors:
        labels = PUBLISHED_LABELS.get(known)
    settings = config_from_checkpoint(source, labels=labels, heads=heads, like=like, lead_names=lead_names)
    given = {"sampling_rate": sampling_rate, "segment_seconds": segment_seconds, "standardize": standardize}
    stated = {name: value for name, value in given.items() if value is not None}
    input_settings, contradictions = resolve_input(source, stated, known)
    warnings = [*settings.warnings, *contradictions, *_source_warnings(source, settings.kind)]
    training = _training_state(source, settings.kind, keep_leads is not None)
    if isinstance(training, TrainingState):
        warnings += [f"the file does not contain {what}" for what in training.missing]
    whole, channels = source, None
    if keep_leads is not None:
        source, settings, channels = _cut_leads(source, settings, keep_leads)
    model = build_model(source, settings)
    extractor = ECGFMFeatureExtractor(lead_names=list(settings.lead_names), **input_settings)
    differences = None
    with atomic_folder(output_dir, check, keep=not dry_run) as folder:
        _save(model, extractor, folder)
        if isinstance(training, TrainingState):
            save_training_state(training, model, folder)
        if verify:
            differences = _verify(folder, type(model), source, whole.tensors, channels)
        step = _provenance_step(source, settings, model, warnings, differences) | {"published": published}
        if keep_leads is not None:
            step["kept_leads"] = list(settings.lead_names)
        if card is not None:
            (folder / CARD_FILE).write_text(card(step, model), encoding="utf-8")
            # An edited card has another digest, and is not overwritten.
            step["card_sha256"] = file_digest(folder / CARD_FILE)
        add_step(folder, "conversion", step)
    return ConversionReport(
        checkpoint=source.path,
        output_dir=None if dry_run else output_dir,
        model_class=type(model).__name__,
        config=model.config,
        lead_names=settings.lead_names,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        parameters={name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()},
        num_updates=source.num_updates,
        training=training,
        input_settings={name: getattr(extractor, name) for name in INPUT_SETTINGS},
        published=known,
        warnings=tuple(warnings),
        differences=differences,
    )


def build_model(source: FairseqCheckpoint, settings: ConvertedSettings) -> ConvertedModel:
    """
    Return the model of a checkpoint in eval mode and float32. It shares the memory of `source.tensors`.

    Raises:
        `CheckpointError`: a tensor is missing, unexpected, or has another shape than the rest of the model requires.
    """
    try:
        state_dict = {name: tensor.float() for name, tensor in convert_state_dict(source.tensors).items()}
        # On the meta device no random weights are drawn; strict loading then assigns the source's tensors.
        with torch.device("meta"):
            model = _MODEL_CLASSES[settings.kind](settings.config)
        model.load_state_dict(state_dict, strict=True, assign=True)
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from error
    except RuntimeError as error:
        raise CheckpointError(f"{source.path}: its tensors do not form the model they describe: {error}") from error
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise RuntimeError(f"{type(model).__name__} has tensors that its state dict does not hold")
    return model.eval()


def _source_warnings(source: FairseqCheckpoint, kind: ModelKind) -> list[str]:
    warnings = []
    if dtypes := {tensor.dtype for tensor in source.tensors.values()} - {torch.float32}:
        stored = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        warnings.append(f"tensors stored as {stored} are written as float32")
    if kind == "pretraining" and source.num_updates is None:
        warnings.append(
            "the file has no number of updates (optimizer_history): to continue pretraining, set "
            "gumbel_updates_before, which decides the Gumbel temperature"
        )
    return warnings


def _provenance_step(
    source: FairseqCheckpoint,
    settings: ConvertedSettings,
    model: ConvertedModel,
    warnings: Sequence[str],
    differences: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Return the conversion's entry in the provenance file, with the source's digest in place of its name."""
    step = {
        "source": "fairseq-signals checkpoint",
        "kind": settings.kind,
        "source_sha256": file_digest(source.path),
        "tensors": len(source.tensors),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "verified": differences is not None,
        "largest_difference": None if differences is None else max(differences.values()),
        "warnings": list(warnings),
        "versions": versions("torch", "transformers"),
    }
    return step if source.num_updates is None else step | {"updates": source.num_updates}


def _save(model: ConvertedModel, extractor: ECGFMFeatureExtractor, folder: Path) -> None:
    save_model_folder(model, extractor, folder)


def _training_state(source: FairseqCheckpoint, kind: ModelKind, is_cut: bool) -> TrainingState | str:
    if kind != "pretraining":
        return "Adam moments of fine-tuning are not carried over; fine-tuning continues from the weights only"
    if is_cut:
        return "the moments are those of the whole first convolution"
    return read_training_state(source)


def _cut_leads(
    source: FairseqCheckpoint, settings: ConvertedSettings, keep: Sequence[str]
) -> tuple[FairseqCheckpoint, ConvertedSettings, list[int]]:
    """Return a checkpoint whose first convolution has only the channels of the leads to keep, and these channels."""
    unknown = [name for name in keep if name not in settings.lead_names]
    if unknown or not keep or len(set(keep)) < len(keep):
        raise SettingsError(
            f"keep_leads is {', '.join(keep) or 'empty'}, expected different leads among those of the model: "
            f"{', '.join(settings.lead_names)}"
        )
    first = f"{FAIRSEQ_PREFIX[settings.kind]}feature_extractor.conv_layers.0.0.weight"
    channels = [settings.lead_names.index(name) for name in keep]
    tensors = source.tensors | {first: source.tensors[first][:, channels].contiguous()}
    config = copy.deepcopy(settings.config)
    config.num_leads = len(keep)
    return replace(source, tensors=tensors), replace(settings, config=config, lead_names=tuple(keep)), channels


def _verify(
    folder: Path,
    model_class: type[ConvertedT],
    source: FairseqCheckpoint,
    whole: Mapping[str, torch.Tensor],
    channels: list[int] | None,
) -> dict[str, float]:
    """Compare the tensors with `source`, and the outputs with the `whole` model, of which `channels` were kept."""
    model = load_model(folder, model_class)
    _compare_tensors(folder, model.config, source.tensors)
    differences = verify_conversion(model, whole, channels)
    check_differences(differences, f"{source.path}: the converted model differs from the source")
    return differences


def _compare_tensors(folder: Path, config: ECGFMConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    written: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        written |= load_file(file)
    returned = revert_state_dict(
        written,
        layer_norm_extractor=config.feat_extract_norm == "layer",
        old_weight_norm=has_old_weight_norm(tensors),
    )
    different = sorted(
        name
        for name in tensors.keys() | returned.keys()
        if name not in tensors or name not in returned or not torch.equal(tensors[name].float(), returned[name])
    )
    if different:
        raise CheckpointError(
            f"{len(different)} written tensors differ from the source's: {', '.join(different[:6])}; nothing was kept"
        )


def _check_output(output_dir: Path, checkpoint: Path, overwrite: bool) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise OutputExistsError(f"{output_dir} is not a folder")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not overwrite:
        raise OutputExistsError(f"{output_dir} is not empty; choose another folder, or replace it with overwrite=True")
    # Overwriting removes the folder, so only a conversion's own files may be in it.
    try:
        found = json.loads((output_dir / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != ECGFMConfig.model_type:
        raise OutputExistsError(f"{output_dir} is not an ECG-FM model folder, so it is not overwritten")
    if output_dir in checkpoint.resolve().parents:
        raise OutputExistsError(f"{output_dir} holds the checkpoint itself, so it is not overwritten")
    foreign = sorted(path.name for path in output_dir.iterdir() if not _is_written_by_conversion(path))
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise OutputExistsError(f"{output_dir} also holds {shown}, so it is not overwritten")


def _is_written_by_conversion(path: Path) -> bool:
    if path.name == CARD_FILE and path.is_file():
        try:
            return [step.get("card_sha256") for step in read_steps(path.parent)] == [file_digest(path)]
        except ProvenanceError:
            return False
    return any(path.match(pattern) for pattern in _WRITTEN_FILES)


__all__ = ["CARD_FILE", "ConversionReport", "ConvertedModel", "build_model", "convert_checkpoint"]
