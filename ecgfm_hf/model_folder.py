"""Model folders: write one, and load one as a model, a feature extractor or a pipeline."""

import copy
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, find_adapter_config_file
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from .configuration_ecgfm import ECGFMConfig
from .feature_extraction_ecgfm import ECGFMFeatureExtractor
from .modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMModel, ECGFMPreTrainedModel
from .pipeline_ecgfm import ECGClassificationPipeline
from .utils.errors import ECGFMError
from .utils.integrity import write_checksums
from .utils.precision import resolve_device, resolve_precision, weights_dtype, with_compiled_layers, with_precision

ModelT = TypeVar("ModelT", bound=ECGFMPreTrainedModel)

# Beside the model, a checkpoint of pretraining has the optimizer's state and where the run is.
OPTIMIZER_FILE, STATE_FILE = "optimizer.pt", "trainer_state.json"
# Beside a run's checkpoints, and in the folder above.
RUN_FILE, SETTINGS_FILE = "run.json", "settings.yaml"
_MASK_EMBEDDING = "masked_spec_embed"
_PRETRAINING_HEADS = ("quantizer.", "project_q.", "project_hid.")
# Tensors that a folder may hold although the class has no use for them, by the beginning of their names (without the
# prefix `ecgfm.`). Only pretraining masks: the other two classes do without the mask embedding, and may also miss it.
_MAY_BE_UNUSED: dict[type[ECGFMPreTrainedModel], tuple[str, ...]] = {
    ECGFMModel: (_MASK_EMBEDDING, *_PRETRAINING_HEADS, "classifier.", "pooler."),
    ECGFMForMultiLabelClassification: (_MASK_EMBEDDING, *_PRETRAINING_HEADS),
    ECGFMForPreTraining: (),
}
_FLOATING_POINT = ("F16", "BF16", "F32", "F64")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NAMED = 4  # tensors in a message


class ModelFolderError(ECGFMError, ValueError):
    """A folder or Hub repository whose files do not make a whole model. The message names the folder and the files."""


class ModelNotFoundError(ModelFolderError, FileNotFoundError):
    """There is no such folder, and no such Hub repository can be reached."""


def save_model_folder(
    model: ECGFMPreTrainedModel, feature_extractor: ECGFMFeatureExtractor, output_dir: str | os.PathLike, **kwargs: Any
) -> None:
    """
    Write weights (safetensors), config, feature extractor and the code that loads them without this package.

    `checksums.json` gets the files' SHA-256, which `ecgfm verify` compares.

    Args:
        model: Any ECG-FM model.
        feature_extractor: What makes its inputs; must give as many leads as the model takes.
        output_dir: Created if absent.
        kwargs: For `PreTrainedModel.save_pretrained`.

    Raises:
        [`ModelFolderError`]: the model and the feature extractor differ in the number of leads.
    """
    _check_leads(model.config, feature_extractor)
    model.save_pretrained(output_dir, **kwargs)
    feature_extractor.save_pretrained(output_dir)
    # After a resumed training the provenance is there already.
    provenance = [path.name for path in Path(output_dir).glob("provenance.json")]
    write_checksums(output_dir, model_files(output_dir) + provenance)


def model_files(model_dir: str | os.PathLike) -> list[str]:
    """Return the names of the files that make the model: weights, config, feature extractor and code."""
    return sorted(
        path.name
        for path in Path(model_dir).iterdir()
        if path.suffix in (".safetensors", ".py")
        or path.name in ("config.json", "preprocessor_config.json", SAFE_WEIGHTS_INDEX_NAME)
    )


def load_model(
    model_dir: str | os.PathLike,
    model_class: type[ModelT] | None = None,
    *,
    config: ECGFMConfig | None = None,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
) -> ModelT:
    """
    Load the model of a folder or Hub repository: every weight comes from the files, and every tensor is used.

    `from_pretrained` fills missing weights at random and skips unused tensors with a warning; here both are errors. The
    tensors are compared with the config before memory is taken for a model. Tensors that a class legitimately does not
    have are allowed: [`ECGFMModel`] leaves every head, [`ECGFMForMultiLabelClassification`] the pretraining heads, and
    neither needs the mask embedding.

    Args:
        model_dir: Folder or repository of any ECG-FM model.
        model_class: The class to return; the one that the folder was saved from if None.
        config: In place of the folder's config, such as a changed copy of it.
        dtype: Number type of the weights, `"auto"` for the one that they were saved in.
        attn_implementation, revision, subfolder, token: As in `from_pretrained`.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        [`ModelNotFoundError`]: there is no such folder or repository.
        [`ModelFolderError`]: no or an impossible config, no or damaged weights; missing or unused tensors; tensors of
            other shapes than the config's, or whose numbers are not floating-point.
    """
    name = os.fspath(model_dir)
    hub = {"revision": revision, "subfolder": subfolder, "token": token}
    config = _load_config(name, hub) if config is None else copy.deepcopy(config)
    model_class = loading_class = _class_of(name, config) if model_class is None else model_class
    stored: list[_StoredTensors] = []
    if getattr(config, "quantization_config", None) is None:
        loading_class, *stored = _checked(name, model_class, config, _weight_files(name, hub))
    try:
        # With `output_loading_info` it returns a pair, against its type.
        loaded: Any = loading_class.from_pretrained(
            model_dir,
            *stored,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **hub,
        )
        model, loading = loaded
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelFolderError(f"{name} does not load as {model_class.__name__}: {error}") from error
    if wrong := {problem: found for problem in ("missing_keys", "mismatched_keys") if (found := loading[problem])}:
        raise ModelFolderError(f"{name} does not load as {model_class.__name__}: {wrong}")
    model.__class__ = model_class
    return model


def load_feature_extractor(
    model_dir: str | os.PathLike,
    *,
    config: ECGFMConfig | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    **settings: Any,
) -> ECGFMFeatureExtractor:
    """
    Load the feature extractor of a model folder or Hub repository.

    Args:
        model_dir: Folder or repository.
        config: The model's; if given, the numbers of leads must agree.
        revision, subfolder, token: As in `from_pretrained`.
        settings: In place of the stored ones, such as `missing_leads`, `nan_samples`, `constant_leads` and
            `short_recordings`.

    Raises:
        [`ModelNotFoundError`]: there is no such folder or repository.
        [`ModelFolderError`]: it has no feature extractor, a damaged one, or one for another number of leads.
        `ValueError`, `TypeError`: impossible `settings`.
    """
    name = os.fspath(model_dir)
    _check_exists(name)
    try:
        feature_extractor = ECGFMFeatureExtractor.from_pretrained(
            model_dir, revision=revision or "main", subfolder=subfolder, token=token, **settings
        )
    except OSError as error:
        advice = "save one there with ECGFMFeatureExtractor.save_pretrained (a Trainer does with processing_class=)"
        raise _read_error(name, f"no usable preprocessor_config.json; {advice}", error) from error
    if config is not None:
        _check_leads(config, feature_extractor, name)
    return feature_extractor


def load_pipeline(
    model_dir: str | os.PathLike,
    *,
    device: int | str | torch.device | None = "cpu",
    precision: str = "float32",
    compile: bool = False,
    dtype: str | torch.dtype | None = None,
    batch_size: int = 16,
    attn_implementation: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    **policies: str,
) -> ECGClassificationPipeline:
    """
    Load the `ecg-classification` pipeline of a folder or Hub repository, with this package's classes.

    No remote code runs. Unlike `transformers.pipeline("ecg-classification", model=...)`, which gives the same class, it
    refuses missing weights and an untrained head.

    Args:
        model_dir: Folder or repository with a classifier, its weights and feature extractor.
        device: Where to run, such as `"cpu"`, `"cuda"` or `"cuda:1"`. A number is a GPU's, -1 the CPU.
        precision: `"float32"`, `"bfloat16"`, `"int8"` (CPU, needs torchao), or `"auto"`: bfloat16 where the device
            computes it well, else float32.
        compile: Whether to compile the encoder layers. The first recording then takes about a minute, and so does the
            first of each other number of segments.
        dtype: As in `from_pretrained`, in place of `precision`.
        batch_size: Segments that run together.
        attn_implementation, revision, subfolder, token: As in `from_pretrained`.
        policies: The feature extractor's `missing_leads`, `nan_samples`, `constant_leads`, `short_recordings`.

    Raises:
        [`ModelFolderError`]: the folder has no whole classifier, no feature extractor, or one for another number of
            leads.
        [`DeviceNotFoundError`]: this machine does not have the device.
        `ValueError`: an unknown precision.
        `ImportError`: int8 without torchao.
    """
    if dtype is not None and precision != "float32":
        raise ValueError(f"give precision or dtype, not both; found: {precision} and {dtype}")
    torch_device = resolve_device(device)
    precision = resolve_precision(precision, torch_device)
    model = load_model(
        model_dir,
        ECGFMForMultiLabelClassification,
        dtype=weights_dtype(precision, torch_device) if dtype is None else dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        subfolder=subfolder,
        token=token,
    )
    feature_extractor = load_feature_extractor(
        model_dir, config=model.config, revision=revision, subfolder=subfolder, token=token, **policies
    )
    if dtype is None:
        model = with_precision(model, precision)
    if compile:
        model = with_compiled_layers(model)
    return ECGClassificationPipeline(
        model=model.eval(),
        feature_extractor=feature_extractor,
        task="ecg-classification",
        device=torch_device,
        batch_size=batch_size,
    )


def _check_leads(config: ECGFMConfig, feature_extractor: ECGFMFeatureExtractor, name: str | None = None) -> None:
    leads = len(feature_extractor.lead_names)
    if leads != config.num_leads:
        where = "" if name is None else f"{name}: "
        raise ModelFolderError(f"{where}the model takes {config.num_leads} leads, its feature extractor gives {leads}")


def _check_exists(name: str) -> None:
    """Refuse what is neither a folder nor a name that a Hub repository can have."""
    if os.path.isdir(name):
        return
    if os.path.isfile(name):
        hint = ": `ecgfm convert` makes one of a fairseq-signals checkpoint" if name.endswith(".pt") else ""
        raise ModelNotFoundError(f"{name} is a file, not a model folder{hint}")
    if not _HUB_NAME.fullmatch(name):
        raise ModelNotFoundError(f"there is no folder {name}")


def _read_error(name: str, problem: str, error: Exception) -> ModelFolderError:
    if os.path.isdir(name):
        return ModelFolderError(f"{name}: {problem} ({error})")
    # The cause has the details, many sentences about the network.
    return ModelNotFoundError(
        f"there is no folder {name}, and no Hub repository of that name can be read; check the name, your access to "
        "the repository, and the network"
    )


def _load_config(name: str, hub: dict[str, Any]) -> ECGFMConfig:
    _check_exists(name)
    folder = os.path.join(name, hub["subfolder"]) if hub["subfolder"] else name
    if os.path.isdir(name) and not os.path.isfile(os.path.join(folder, "config.json")):
        _refuse_adapter(name, hub)
        raise ModelFolderError(f"{folder} is no model folder: it has no config.json")
    try:
        stored, _ = ECGFMConfig.get_config_dict(name, **hub)
    except OSError as error:
        raise _read_error(name, "config.json cannot be read", error) from error
    if (found := stored.get("model_type")) != ECGFMConfig.model_type:
        if found is None:  # transformers makes a config of an adapter's repository
            _refuse_adapter(name, hub)
        raise ModelFolderError(f"{name}: config.json is of a model of type {found!r}, expected 'ecgfm'")
    try:
        return ECGFMConfig.from_dict(stored)
    except (StrictDataclassError, ValueError, TypeError, AttributeError, LookupError) as error:
        # huggingface_hub names its own function; the cause has the message.
        cause = error.__cause__ if isinstance(error, StrictDataclassClassValidationError) else error
        raise ModelFolderError(f"{name}: config.json: {cause}") from error


def _refuse_adapter(name: str, hub: dict[str, Any]) -> None:
    """Raise `ModelFolderError` if this is an adapter of PEFT, which has neither labels nor the base model's weights."""
    path = find_adapter_config_file(name, **hub)
    if path is None:
        return
    with open(path, encoding="utf-8") as file:
        adapter = json.load(file)
    base = adapter.get("base_model_name_or_path")
    raise ModelFolderError(
        f"{name} is a {adapter.get('peft_type', 'PEFT')} adapter of the base model {base}, expected a whole model. "
        f"Merge it: PeftModel.from_pretrained(model, {name!r}).merge_and_unload(), where model is "
        f"AutoModelForAudioClassification.from_pretrained({base!r}, ...) with the labels and problem_type of the "
        "training; then save the result with save_model_folder"
    )


def _class_of(name: str, config: ECGFMConfig) -> type[Any]:
    classes = {model_class.__name__: model_class for model_class in _MAY_BE_UNUSED}
    found = config.architectures or []
    for architecture in found:
        if architecture in classes:
            return classes[architecture]
    raise ModelFolderError(f"{name}: config.json has architectures {found}, expected one of {', '.join(classes)}")


def _weight_files(name: str, hub: dict[str, Any]) -> list[str]:
    """Paths of the safetensors files, downloaded where `name` is a Hub repository."""
    try:
        single = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub)
        if single is not None:
            return [single]
        index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **hub)
        if index is None:
            raise ModelFolderError(f"{name} has no weights: expected {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}")
        return list(get_checkpoint_shard_files(name, index, **hub)[0])
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ModelFolderError):
            raise
        raise _read_error(name, "its weights cannot be read", error) from error


def _read_headers(name: str, files: Iterable[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and number type of each tensor in the files' headers, by name without the prefix `ecgfm.`."""
    stored: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  # not a dictionary
                    part, bare = tensors.get_slice(key), key.removeprefix(f"{ECGFMModel.base_model_prefix}.")
                    if bare in stored:
                        raise ModelFolderError(f"{name} holds the tensor {bare} twice, with and without a prefix")
                    stored[bare] = tuple(part.get_shape()), part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(f"{name}: {Path(path).name} is damaged: {error}") from error
    return stored


@dataclass(frozen=True)
class _StoredTensors:
    """
    The tensors that a model is to be loaded from.

    Args:
        name: The model's folder, for messages.
        model_class: The class to load.
        tensors: Shape and number type of each, as [`_read_headers`] returns them.
        allowed: How names of tensors begin that the class may leave unused.
    """

    name: str
    model_class: type[ECGFMPreTrainedModel]
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    allowed: tuple[str, ...]

    def check(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raise `ModelFolderError` where they are not those of a model's `state`."""
        prefix = f"{ECGFMModel.base_model_prefix}."
        expected = {key.removeprefix(prefix): tuple(tensor.shape) for key, tensor in state.items()}
        missing = [key for key in expected if key not in self.tensors]
        unused = [key for key in self.tensors if key not in expected and not key.startswith(self.allowed)]
        shared = {key: self.tensors[key] for key in expected if key in self.tensors}
        shapes = [f"{k} is {shape}, expected {expected[k]}" for k, (shape, _) in shared.items() if shape != expected[k]]
        types = [f"{k} is {kind}" for k, (_, kind) in shared.items() if kind not in _FLOATING_POINT]
        problems = [
            f"{what}: {', '.join(found[:_NAMED])}" + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
            for what, found in (
                ("missing tensors", missing),
                ("unused tensors", unused),
                ("wrong shapes", shapes),
                (f"wrong number types (expected {', '.join(_FLOATING_POINT)})", types),
            )
            if found
        ]
        if problems:
            hint = _hint(self.model_class, missing)
            raise ModelFolderError(
                f"{self.name} does not load as {self.model_class.__name__}: {'; '.join(problems)}{hint}"
            )


def _checked(
    name: str, model_class: type[ModelT], config: ECGFMConfig, files: Iterable[str]
) -> tuple[type[ModelT], _StoredTensors]:
    """
    Return a subclass whose models are checked, and the tensors that it takes after the config to check them.

    Where the class does not need the mask embedding and the files have none, `config.mask_time_prob` becomes 0, so that
    the model has none either.
    """
    allowed = next((of for known, of in _MAY_BE_UNUSED.items() if issubclass(model_class, known)), ())
    stored = _read_headers(name, files)
    # Counted before anything is built: a config may name any number of layers.
    layers = {key.split(".")[2] for key in stored if key.startswith("encoder.layers.")}
    if len(layers) != config.num_hidden_layers:
        raise ModelFolderError(
            f"{name}: the config has num_hidden_layers={config.num_hidden_layers}, the weights have {len(layers)}"
        )
    if _MASK_EMBEDDING in allowed and _MASK_EMBEDDING not in stored:
        config.mask_time_prob = 0.0
    checked_class = _checked_class(model_class)  # type: ignore[arg-type]  # mypy takes a generic class as not hashable
    return checked_class, _StoredTensors(name, model_class, stored, allowed)


@functools.cache  # transformers takes 9 ms to define a class
def _checked_class(model_class: type[ModelT]) -> type[ModelT]:
    """Return a subclass whose models are checked when they are built, still without weights."""

    class Checked(model_class):  # type: ignore[misc, valid-type]  # its base is known at run time only
        # Building a model for the comparison, and another to load, would take a third longer.
        def __init__(self, config: ECGFMConfig, stored: _StoredTensors, **kwargs: Any):
            try:
                super().__init__(config, **kwargs)
            except (RuntimeError, ValueError, TypeError, KeyError) as error:
                raise ModelFolderError(
                    f"{stored.name}: its config describes no model that can be built: {error}"
                ) from error
            stored.check(self.state_dict(keep_vars=True))  # not detached: only shapes count

    Checked.__name__ = model_class.__name__  # for messages and what goes by a class's name
    return Checked


def _hint(model_class: type[ECGFMPreTrainedModel], missing: list[str]) -> str:
    if issubclass(model_class, ECGFMForMultiLabelClassification) and any(k.startswith("classifier.") for k in missing):
        return ". It has no trained classification head: fine-tune it first"
    if any(k.startswith("pooler.") for k in missing):
        return ". Its config has pooling='attention', but it has no trained attention pooling: fine-tune it first"
    if issubclass(model_class, ECGFMForPreTraining) and any(k.startswith(_PRETRAINING_HEADS) for k in missing):
        return ". It has no pretraining heads, as after fine-tuning: take a pretrained model"
    return ""


__all__ = [
    "OPTIMIZER_FILE",
    "RUN_FILE",
    "SETTINGS_FILE",
    "STATE_FILE",
    "ModelFolderError",
    "ModelNotFoundError",
    "load_feature_extractor",
    "load_model",
    "load_pipeline",
    "model_files",
    "save_model_folder",
]
