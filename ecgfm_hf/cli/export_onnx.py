"""`ecgfm export-onnx`: its arguments, and what it prints."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..inference.onnx_export import OnnxReport


def add_export_onnx_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm export-onnx`."""
    parser.add_argument("model", metavar="MODEL", help="folder or Hub repository of a classifier")
    parser.add_argument("output_dir", metavar="OUT", type=Path, help="folder to write, new or empty")


def run_export_onnx(args: argparse.Namespace) -> int:
    """Runs `ecgfm export-onnx`. Returns 0 written, 1 the model cannot be exported, 2 usage."""
    from ..inference.onnx_export import OnnxExportError, export_onnx

    try:
        report = export_onnx(args.model, args.output_dir)
    except OnnxExportError as error:
        print(f"ecgfm: {error}", file=sys.stderr)
        return 1
    except (ImportError, ValueError, OSError) as error:
        print(f"ecgfm: {error}", file=sys.stderr)
        return 2
    print(_summary(report))
    return 0


def _summary(report: "OnnxReport") -> str:
    rows: list[tuple[str, Any]] = [("size", f"{report.size / 2**20:.1f} MB")]
    rows += [(f"difference, {name}", f"{value:.1e} of the largest value") for name, value in report.differences.items()]
    rows += [("difference, score", f"{report.score_difference:.1e}")]
    rows += [("checked at", ", ".join(" x ".join(map(str, shape)) for shape in report.checked))]
    rows += [("written to", str(report.folder))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
