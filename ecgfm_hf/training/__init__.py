"""
Pretraining and fine-tuning: recipes, augmentations, optimisers, loops.

Nothing is imported until it is asked for.
"""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
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
        ".finetuning": ("FinetuneResult", "train_classifier"),
        ".linear_probe": ("Heads", "LinearProbe", "fit_heads", "fit_linear_probe"),
        ".masking": ("compute_mask_indices",),
        ".optimizers": ("FairseqAdam",),
        ".pretraining": ("NonFiniteLossError", "PretrainResult", "Pretrainer"),
        ".recipes": ("find_recipe", "read_recipe", "recipe_names"),
        ".settings": ("FinetuneSettings", "PretrainSettings", "SettingsError"),
    },
)
