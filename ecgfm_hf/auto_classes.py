"""
Registration of this package's classes with the Auto classes and the pipelines of transformers.

`import ecgfm_hf` must be fast, so it does not import transformers (and with it torch). If transformers is imported
already, the classes are registered at once. If it is imported later, a finder on `sys.meta_path` registers them as soon
as transformers itself has run. After that the finder is gone.
"""

import importlib.abc
import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_CLASS_MODULES = tuple(
    f"{__package__}.{name}_ecgfm" for name in ("configuration", "feature_extraction", "modeling", "pipeline")
)


def register_with_transformers() -> None:
    """Register the classes now if transformers is imported, else as soon as it is. Safe to call again."""
    if _FINDER.registered:
        return
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    if sys.modules.get("transformers") is not None:
        _FINDER.register()


class _RegisteringFinder(importlib.abc.MetaPathFinder):
    """
    Watches the import of transformers and of the modules that hold our classes.

    A module with our classes may be the first to import transformers. It is then still incomplete when transformers
    has run, so the classes are registered when that module has run too.
    """

    def __init__(self) -> None:
        self.registered = False
        self.running: list[str] = []  # modules with our classes that are being imported

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers" and fullname not in _CLASS_MODULES:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _WatchedLoader(spec.loader, self)
                return spec
        return None

    def register(self) -> None:
        """Register the classes, unless one of their modules is not complete yet."""
        if self.registered or self.running:
            return
        self.registered = True
        try:
            _register()
        except BaseException:
            self.registered = False
            raise
        if self in sys.meta_path:
            sys.meta_path.remove(self)


class _WatchedLoader(importlib.abc.Loader):
    """A loader that registers the classes once its module has run; it leaves no trace in the module."""

    def __init__(self, loader: importlib.abc.Loader, finder: _RegisteringFinder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> object:  # `get_source` and others of the real loader
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        if module.__name__ in _CLASS_MODULES:
            self._finder.running.append(module.__name__)
            try:
                self._loader.exec_module(module)
            finally:
                self._finder.running.remove(module.__name__)
        else:
            self._loader.exec_module(module)
        if sys.modules.get("transformers") is not None:
            self._finder.register()


def _register() -> None:
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForAudioClassification,
        AutoModelForPreTraining,
        AutoModelForSequenceClassification,
        AutoProcessor,
    )
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_ecgfm import CustomPipelines, ECGFMConfig
    from .feature_extraction_ecgfm import ECGFMFeatureExtractor
    from .modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMModel
    from .pipeline_ecgfm import ECGClassificationPipeline

    AutoConfig.register("ecgfm", ECGFMConfig, exist_ok=True)
    AutoFeatureExtractor.register(ECGFMConfig, ECGFMFeatureExtractor, exist_ok=True)
    AutoProcessor.register(ECGFMConfig, ECGFMFeatureExtractor, exist_ok=True)
    for auto_class, model_class in (
        (AutoModel, ECGFMModel),
        (AutoModelForPreTraining, ECGFMForPreTraining),
        (AutoModelForSequenceClassification, ECGFMForMultiLabelClassification),
        (AutoModelForAudioClassification, ECGFMForMultiLabelClassification),
    ):
        auto_class.register(ECGFMConfig, model_class, exist_ok=True)

    # Registered for an Auto class, an object's code is copied into every folder that it is saved to.
    ECGFMConfig.register_for_auto_class()
    ECGFMFeatureExtractor.register_for_auto_class()
    ECGFMModel.register_for_auto_class("AutoModel")
    ECGFMForPreTraining.register_for_auto_class("AutoModelForPreTraining")
    ECGFMForMultiLabelClassification.register_for_auto_class("AutoModelForSequenceClassification")

    if "ecg-classification" not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            "ecg-classification", ECGClassificationPipeline, pt_model=AutoModelForSequenceClassification
        )
    CustomPipelines.registered.add("ecg-classification")


def silence_torchao() -> None:
    """
    Drop two log messages that follow from transformers' import of torchao, where that is installed.

    They report that torchao's GPU libraries cannot be loaded, and that torchao calls a deprecated function of torch.
    Users cannot act on either. Call this before transformers is imported.
    """
    for name in ("torchao", "torch.utils._pytree"):  # the first is torchao's, the second torch's about it
        logging.getLogger(name).addFilter(_is_not_torchaos_notice)


def _is_not_torchaos_notice(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not (message.startswith("Failed to load") or "register_constant()" in message)


_FINDER = _RegisteringFinder()

__all__ = ["register_with_transformers", "silence_torchao"]
