"""From a fairseq-signals checkpoint to a Transformers model folder."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.modeling_utils import PreTrainedModel

from ..configuration_ecgfm import ECGFMConfig
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining
from ..provenance import FACTS_FILE, ModelFactsError, add_step, file_digest, read_steps, versions
from .checkpoint import CheckpointError, FairseqCheckpoint, load_fairseq_checkpoint
from .label_sets import LabelSet
from .reference import VerificationError, verify_conversion
from .settings import ConvertedSettings, config_from_checkpoint
from .state_dict import convert_state_dict, has_old_weight_norm, revert_state_dict

# Rounding alone stays near a tenth of this at full size (24 layers of width 1024).
VERIFICATION_TOLERANCE = 1e-5

_MODEL_CLASSES = {"pretraining": ECGFMForPreTraining, "classification": ECGFMForMultiLabelClassification}


@dataclass(frozen=True)
class ConversionReport:
    """
    What a conversion did.

    Args:
        checkpoint (`Path`): The source.
        output_dir (`Path`, *optional*): The folder written; `None` for a dry run.
        model_class (`str`): `"ECGFMForPreTraining"` or `"ECGFMForMultiLabelClassification"`.
        config (`ECGFMConfig`)
        lead_names (`tuple[str, ...]`): Leads that the feature extractor delivers, in order.
        num_parameters (`int`): Of the whole model, equal to the source's.
        parameters (`dict[str, int]`): Of its top-level modules.
        warnings (`tuple[str, ...]`): What was decided against, or without, the source's settings.
        differences (`dict[str, float]`, *optional*):
            With `verify`: largest difference of each output, as in [`verify_conversion`].
    """

    checkpoint: Path
    output_dir: Path | None
    model_class: str
    config: ECGFMConfig
    lead_names: tuple[str, ...]
    num_parameters: int
    parameters: dict[str, int] = field(default_factory=dict)
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
    verify: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    card: Callable[[Mapping[str, Any], PreTrainedModel], str] | None = None,
    published: str | None = None,
) -> ConversionReport:
    """
    Writes a fairseq-signals checkpoint as a folder that `from_pretrained` loads: weights (safetensors, float32),
    config, feature extractor.

    The folder appears whole or not at all, and holds none of the source's paths.

    Args:
        checkpoint (`str` or `Path`): The `.pt` file, pretrained or fine-tuned.
        output_dir (`str` or `Path`): New or empty folder.
        labels (*optional*): A classifier's labels, as in [`resolve_labels`]. Without it they are called `LABEL_i`.
        heads, like, lead_names (*optional*): As in [`config_from_checkpoint`].
        verify (`bool`, defaults to `False`):
            Read the written folder again, compare its tensors with the source's bit by bit, and its outputs with
            [`reference_forward`].
        overwrite (`bool`, defaults to `False`): Replace `output_dir` if it is an ECG-FM model folder.
        dry_run (`bool`, defaults to `False`): Do everything but keep the folder.
        card (callable, *optional*): `(facts, model) -> text` of a model card, for `README.md`; of what
            `model_facts.json` says of the conversion. What it raises leaves no folder behind.
        published (`str`, *optional*): Which published checkpoint the user says that this is, for the facts.

    Returns:
        [`ConversionReport`]

    Raises:
        `CheckpointError`, `LabelError`, `ValueError`: as in [`load_fairseq_checkpoint`], [`config_from_checkpoint`].
        `FileNotFoundError`: a file that was named does not exist.
        `FileExistsError`: `output_dir` is in use.
        `VerificationError`: the written model differs from the source. No folder is left behind.
    """
    output_dir = Path(output_dir).resolve()
    check = partial(_check_output, output_dir, Path(checkpoint), overwrite)
    check()
    source = load_fairseq_checkpoint(checkpoint)
    settings = config_from_checkpoint(source, labels=labels, heads=heads, like=like, lead_names=lead_names)
    warnings = list(settings.warnings)
    dtypes = {tensor.dtype for tensor in source.tensors.values()} - {torch.float32}
    if dtypes:
        stored = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        warnings.append(f"tensors stored as {stored} are written as float32")
    model = build_model(source, settings)
    differences = None
    with _folder(output_dir, not dry_run, check) as folder:
        _save(model, settings, folder)
        if verify:
            differences = _verify(folder, type(model), source)
        facts = _facts(source, settings, model, warnings, differences) | {"published": published}
        if card is not None:
            (folder / CARD_FILE).write_text(card(facts, model), encoding="utf-8")
            # So that a card which somebody has edited is told from one that may be replaced.
            facts["card_sha256"] = file_digest(folder / CARD_FILE)
        add_step(folder, "conversion", facts)
    return ConversionReport(
        checkpoint=source.path,
        output_dir=None if dry_run else output_dir,
        model_class=type(model).__name__,
        config=model.config,
        lead_names=settings.lead_names,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        parameters={name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()},
        warnings=tuple(warnings),
        differences=differences,
    )


def _facts(
    source: FairseqCheckpoint,
    settings: ConvertedSettings,
    model: PreTrainedModel,
    warnings: Sequence[str],
    differences: Mapping[str, float] | None,
) -> dict[str, Any]:
    """For `model_facts.json`. The source's digest in place of its name, which may be anything."""
    return {
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


def build_model(source: FairseqCheckpoint, settings: ConvertedSettings) -> PreTrainedModel:
    """
    The model of a checkpoint in eval mode and float32, every weight loaded. It shares the memory of `source.tensors`.

    Raises:
        `CheckpointError`: a tensor is missing, unexpected, or of another shape than the rest of the model asks for.
    """
    try:
        state_dict = {name: tensor.float() for name, tensor in convert_state_dict(source.tensors).items()}
        # Without memory of its own the model draws no random weights, and strict loading gives it the source's.
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


def _save(model: PreTrainedModel, settings: ConvertedSettings, folder: Path) -> None:
    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
    from ..model_folder import save_model_folder

    save_model_folder(model, ECGFMFeatureExtractor(lead_names=list(settings.lead_names)), folder)


def _verify(folder: Path, model_class: type[PreTrainedModel], source: FairseqCheckpoint) -> dict[str, float]:
    model, loading = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    astray = {problem: names for problem, names in loading.items() if names}
    if astray:
        raise VerificationError(f"the written folder does not load completely: {astray}")
    _compare_tensors(folder, model.config, source.tensors)
    differences = verify_conversion(model, source.tensors)
    # `not <=` also catches NaN.
    wrong = {name: value for name, value in differences.items() if not value <= VERIFICATION_TOLERANCE}
    if wrong:
        shown = ", ".join(f"{name} {value:.2e}" for name, value in wrong.items())
        raise VerificationError(
            f"{source.path}: the converted model differs from the source by more than {VERIFICATION_TOLERANCE} of the "
            f"largest value: {shown}"
        )
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
        raise VerificationError(
            f"{len(different)} written tensors differ from the source's: {', '.join(different[:6])}"
        )


# What a model folder holds; anything else in it is somebody's, and stays.
_OURS = ("config.json", "preprocessor_config.json", "*.safetensors", "model.safetensors.index.json", "*_ecgfm.py")
_OURS += (FACTS_FILE,)
CARD_FILE = "README.md"


def _check_output(output_dir: Path, checkpoint: Path, overwrite: bool) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is not a folder")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{output_dir} is not empty; choose another folder, or allow overwriting (--overwrite)")
    # Replacing removes what is there, so it has to be what a conversion left.
    try:
        found = json.loads((output_dir / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != ECGFMConfig.model_type:
        raise FileExistsError(f"{output_dir} holds other things than an ECG-FM model; it is not overwritten")
    if output_dir in checkpoint.resolve().parents:
        raise FileExistsError(f"{output_dir} holds the checkpoint itself; it is not overwritten")
    foreign = sorted(path.name for path in output_dir.iterdir() if not _is_ours(path))
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise FileExistsError(f"{output_dir} also holds {shown}; it is not overwritten")


def _is_ours(path: Path) -> bool:
    if path.name == CARD_FILE and path.is_file():
        try:
            return [step.get("card_sha256") for step in read_steps(path.parent)] == [file_digest(path)]
        except ModelFactsError:
            return False
    return any(path.match(pattern) for pattern in _OURS)


@contextmanager
def _folder(output_dir: Path, keep: bool, check: Callable[[], None]) -> Iterator[Path]:
    """
    A folder beside `output_dir` that takes its place once the block is through without an error.

    `check` raises where `output_dir` must not be replaced; it is asked again at the end, since a conversion takes long
    enough for somebody else to have written there.
    """
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", suffix=".partial", dir=output_dir.parent))
    try:
        new = work / "new"
        new.mkdir()  # with the user's own permissions; mkdtemp's are private
        yield new
        if keep:
            check()
            if output_dir.is_dir() and any(output_dir.iterdir()):
                output_dir.rename(work / "old")
            try:
                new.rename(output_dir)  # onto a missing or an empty folder: the system refuses any other
            except OSError:
                if (work / "old").is_dir():
                    os.rename(work / "old", output_dir)
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
