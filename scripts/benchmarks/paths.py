"""The fast paths of inference that are compared, by name."""

REFERENCE = "float32-eager"
INFERENCE_PATHS = (
    REFERENCE,
    "bfloat16-eager",
    "bfloat16-compiled",
    "int8-eager",
    "int8-compiled",
    "float32-onnx",
)
