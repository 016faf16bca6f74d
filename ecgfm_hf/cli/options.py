"""Options that several commands have: one definition of each."""

from typing import Any


def add_precision_argument(parser: Any, default: str, gradients: bool = False) -> None:
    """Declares `--precision`; with `gradients`, of a model that has to have them, which int8 has not."""
    from ..utils.precision import PRECISIONS

    quantised = "" if gradients else "; int8: of linear layers, on a CPU (needs ecgfm-hf[int8])"
    parser.add_argument(
        "--precision",
        "--dtype",
        dest="precision",
        choices=[name for name in PRECISIONS if not (gradients and name == "int8")],
        default=default,
        help="auto: bfloat16 where the processor or GPU has instructions for it, else float32"
        f"{quantised} (default: {default})",
    )
