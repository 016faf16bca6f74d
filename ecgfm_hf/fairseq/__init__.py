"""fairseq-signals checkpoints to this package's model folders, and back."""

from .checkpoint import CheckpointError, FairseqCheckpoint, load_fairseq_checkpoint
from .convert import ConversionReport, build_model, convert_checkpoint
from .export_checkpoint import ExportReport, export_fairseq_checkpoint, fairseq_settings
from .grammar import parse_conv_feature_layers
from .label_sets import LABEL_SETS, MIMIC17, PHYSIONET26, PHYSIONET_CLASSES, LabelError, LabelSet, resolve_labels
from .reference import ReferenceOutput, VerificationError, reference_forward, verify_conversion
from .settings import ConvertedSettings, config_from_checkpoint
from .state_dict import convert_state_dict, revert_state_dict
from .tensor_facts import TensorFacts, read_tensor_facts

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
