"""fairseq-signals checkpoints to this package's model folders, and back."""

from .convert import ConversionReport, build_model, convert_checkpoint
from .export import ExportReport, export_fairseq_checkpoint, fairseq_settings
from .facts import TensorFacts, read_tensor_facts
from .grammar import parse_conv_feature_layers
from .labels import LABEL_SETS, MIMIC17, PHYSIONET26, PHYSIONET_CLASSES, LabelError, LabelSet, resolve_labels
from .loading import CheckpointError, FairseqCheckpoint, load_fairseq_checkpoint
from .mapping import convert_state_dict, revert_state_dict
from .settings import ConvertedSettings, config_from_checkpoint
from .verify import ReferenceOutput, VerificationError, reference_forward, verify_conversion

__all__ = [
    "LABEL_SETS",
    "MIMIC17",
    "PHYSIONET26",
    "PHYSIONET_CLASSES",
    "CheckpointError",
    "ConversionReport",
    "ConvertedSettings",
    "ExportReport",
    "FairseqCheckpoint",
    "LabelError",
    "LabelSet",
    "ReferenceOutput",
    "TensorFacts",
    "VerificationError",
    "build_model",
    "config_from_checkpoint",
    "convert_checkpoint",
    "convert_state_dict",
    "export_fairseq_checkpoint",
    "fairseq_settings",
    "load_fairseq_checkpoint",
    "parse_conv_feature_layers",
    "read_tensor_facts",
    "reference_forward",
    "resolve_labels",
    "revert_state_dict",
    "verify_conversion",
]
