"""
ECG-FM, the open foundation model for the 12-lead electrocardiogram, for Hugging Face Transformers.

Importing this package registers its classes with the Auto classes and the `ecg-classification` pipeline:

    >>> import ecgfm_hf
    >>> from transformers import AutoModel
    >>> model = AutoModel.from_pretrained("path/to/folder")
"""

from .utils import notices as _notices  # noqa: F401  # isort: skip  # before transformers is imported
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_ecgfm import ECGFMConfig
from .feature_extraction_ecgfm import ECGFMFeatureExtractor
from .hub.methods import give_push_to_hub
from .model_folder import load_pipeline, save_model_folder
from .modeling_ecgfm import (
    ECGFMForMultiLabelClassification,
    ECGFMForPreTraining,
    ECGFMModel,
    ECGFMPreTrainedModel,
)
from .pipeline_ecgfm import ECGClassificationPipeline
from .records import ECGRecord, read_ecg

__version__ = "0.1.0"


def _register() -> None:
    AutoConfig.register("ecgfm", ECGFMConfig, exist_ok=True)
    AutoFeatureExtractor.register(ECGFMConfig, ECGFMFeatureExtractor, exist_ok=True)
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

    give_push_to_hub(
        models=[ECGFMPreTrainedModel],
        pipelines=[ECGClassificationPipeline],
        parts=[ECGFMConfig, ECGFMFeatureExtractor],
    )


_register()

__all__ = [
    "ECGClassificationPipeline",
    "ECGFMConfig",
    "ECGFMFeatureExtractor",
    "ECGFMForMultiLabelClassification",
    "ECGFMForPreTraining",
    "ECGFMModel",
    "ECGRecord",
    "__version__",
    "load_pipeline",
    "read_ecg",
    "save_model_folder",
]
