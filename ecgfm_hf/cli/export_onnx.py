"""`ecgfm export-onnx`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import quiet_libraries
from .outputs import Reads, Writes

if TYPE_CHECKING:
    from ..inference.onnx_export import OnnxReport


def export_onnx(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub repository of a classifier."), Reads()],
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty."), Writes()],
) -> int:
    """
    Write a classifier as an ONNX file, checked against torch.

    Writes model.onnx with labels, aggregation and preprocessing settings beside it (needs ecgfm-hf\\[onnx]). The model
    takes any number of segments of any length.

    Exit status: 0 written, 1 the model cannot be exported or the outputs differ, 2 usage.
    """
    with quiet_libraries():
        from ..inference.onnx_export import export_onnx as export

        print(_summary(export(model, output_dir)))
    return 0


def _summary(report: "OnnxReport") -> str:
    rows: list[tuple[str, str]] = [("size", f"{report.size / 2**20:.1f} MB")]
    rows += [(f"difference, {name}", f"{value:.1e} of the largest value") for name, value in report.differences.items()]
    rows += [("difference, score", f"{report.score_difference:.1e}")]
    rows += [("checked at", ", ".join(" x ".join(map(str, shape)) for shape in report.checked))]
    rows += [("written to", str(report.folder))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
