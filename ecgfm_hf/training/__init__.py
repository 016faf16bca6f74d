"""
Pretraining and fine-tuning: recipes, augmentations, optimisers, loops.

Nothing is imported until it is asked for.
"""

import importlib
from typing import Any

_HOMES = {
    ".augmentations": (
        "BaselineShift",
        "BaselineWander",
        "EMGNoise",
        "PowerlineNoise",
        "RandomLeadMasking",
        "build_augmentations",
    ),
    ".classifier_start": ("build_classifier", "build_extractor"),
    ".ecg_trainer": ("ECGTrainer", "NonFiniteTrainingError"),
    ".embeddings": ("Embeddings", "LinearProbeError", "embed_split"),
    ".finetune_run": ("Finetuner", "finetune"),
    ".finetune_settings": ("FinetuneSettings",),
    ".finetuning": ("FinetuneResult", "train_classifier"),
    ".linear_probe": ("Heads", "LinearProbe", "fit_heads", "fit_linear_probe"),
    ".masking": ("compute_mask_indices",),
    ".optimizers": ("FairseqAdam",),
    ".pretraining": ("NonFiniteLossError", "PretrainResult", "Pretrainer"),
    ".recipes": ("find_recipe", "read_recipe", "recipe_names"),
    ".settings": ("PretrainSettings", "SettingsError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
