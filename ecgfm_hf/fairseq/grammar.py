"""Reading `conv_feature_layers`, which fairseq-signals keeps as Python source text, without evaluating it."""

import ast
from typing import Any

_MAX_CONV_LAYERS = 64


def parse_conv_feature_layers(value: Any) -> list[tuple[int, int, int]]:
    """
    `conv_feature_layers` of fairseq-signals, Python source text such as `"[(256, 2, 2)] * 3 + [(512, 2, 2)]"`.

    Only this grammar is read (lists of three-integer tuples, `+`, and `*` by an integer); nothing is evaluated.

    Returns:
        One `(channels, kernel, stride)` a layer.

    Raises:
        `ValueError`: anything else, or more than 64 layers.
    """
    if isinstance(value, str):
        try:
            if len(value) > 2000:
                raise ValueError("too long")
            layers = _layers(ast.parse(value.strip(), mode="eval").body)
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise ValueError(f"conv_feature_layers cannot be read: {value[:80]!r} ({error})") from error
    else:
        layers = list(value) if isinstance(value, (list, tuple)) else []
    if not 0 < len(layers) <= _MAX_CONV_LAYERS or not all(_is_layer(layer) for layer in layers):
        raise ValueError(
            f"conv_feature_layers must be 1 to {_MAX_CONV_LAYERS} triples (channels, kernel, stride), found: "
            f"{str(value)[:80]!r}"
        )
    return [tuple(layer) for layer in layers]


def _layers(node: ast.expr) -> list[Any]:
    if isinstance(node, ast.List):
        return [_triple(item) for item in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        layers = _layers(node.left) + _layers(node.right)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = node.left, node.right
        if isinstance(left, ast.Constant):
            left, right = right, left
        times = _integer(right)
        if times > _MAX_CONV_LAYERS:
            raise ValueError(f"{times} repetitions")
        layers = _layers(left) * times
    else:
        raise ValueError("not a list of tuples, nor a sum or multiple of such")
    if len(layers) > _MAX_CONV_LAYERS:
        raise ValueError("too many layers")
    return layers


def _triple(node: ast.expr) -> tuple[int, ...]:
    if not isinstance(node, (ast.Tuple, ast.List)):
        raise ValueError("a layer must be a tuple")
    return tuple(_integer(item) for item in node.elts)


def _integer(node: ast.expr) -> int:
    if not isinstance(node, ast.Constant) or type(node.value) is not int:
        raise ValueError("only integers are allowed")
    return node.value


def _is_layer(layer: Any) -> bool:
    return isinstance(layer, (list, tuple)) and len(layer) == 3 and all(type(n) is int and 0 < n < 10**6 for n in layer)
