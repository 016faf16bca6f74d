"""fairseq-signals checkpoints to this package's model folders."""

from .convert import ConversionReport, build_model, convert_checkpoint
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
    "load_fairseq_checkpoint",
    "parse_conv_feature_layers",
    "read_tensor_facts",
    "reference_forward",
    "resolve_labels",
    "revert_state_dict",
    "verify_conversion",
]
