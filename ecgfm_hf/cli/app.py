"""`ecgfm app`: its arguments, and a page that is served until it is ended."""

import argparse
import errno
import importlib.util
import math
import os
import sys

from .options import add_precision_argument

_NEEDED = {"gradio": "app", "matplotlib": "app", "captum": "app"}
DESCRIPTION = (
    "Serves a page where a recording can be dropped: the 12-lead page, scores, saliency, JSON and PDF. On this machine "
    "alone unless --host says otherwise. Files are deleted as soon as they are read, and nothing is sent anywhere."
)
EXIT_STATUS = "Exit status: 0 ended by Ctrl-C, 2 usage."


def add_app_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm app`."""
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub repository of a classifier")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=7860, help="0 takes any that is free (default: 7860)")
    parser.add_argument(
        "--max-mb", type=_megabytes, default=20.0, metavar="MB", help="largest upload, all files together (default: 20)"
    )
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda (default: cpu)")
    # One recording at a time, and saliency is of gradients: what is gained is small.
    add_precision_argument(parser, default="float32", gradients=True)


def run_app(args: argparse.Namespace) -> int:
    """Runs `ecgfm app`. Returns 0 once it is ended by Ctrl-C or SIGTERM, 2 where it cannot begin."""
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        print(f"ecgfm: the page needs {', '.join(lacking)}: pip install 'ecgfm-hf[app]'", file=sys.stderr)
        return 2
    from ..app.reader_process import ReaderProcess
    from ..app.server import LOOPBACK, AppSettings, build_app, listen, private_folder, serve
    from ..model_folder import load_pipeline
    from ..utils.logs import only_errors
    from ..utils.precision import keep_freed_memory
    from .predict import _loading, _terminated_as_interrupted, _UsageError

    keep_freed_memory()
    try:
        found = listen(args.host, args.port)
    except OSError as error:
        hint = " (--port 0 takes any that is free)" if error.errno == errno.EADDRINUSE else ""
        why = f"{error.strerror or error}{hint}"
        print(f"ecgfm: cannot listen at {args.host}, port {args.port}: {why}", file=sys.stderr)
        return 2
    reader = ReaderProcess()
    try:
        with found, only_errors("ecgfm_hf"), _terminated_as_interrupted(), private_folder() as folder:
            reader.start()
            with _loading(args.model):
                pipeline = load_pipeline(args.model, device=args.device, precision=args.precision)
            name = os.path.basename(os.path.normpath(args.model))
            app = build_app(pipeline, reader, folder, AppSettings(name, args.host, args.max_mb))
            if args.host not in LOOPBACK:
                print(
                    f"ecgfm: WARNING: {args.host} is not this machine alone: whoever reaches it can use the page, "
                    "without a password, and what they send can be read on the way",
                    file=sys.stderr,
                )
            host = f"[{args.host}]" if ":" in args.host else args.host
            print(f"ecgfm: http://{host}:{found.getsockname()[1]} (Ctrl-C ends it)", flush=True)
            serve(app, found, folder)
    except _UsageError as error:
        print(f"ecgfm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    finally:
        reader.close()
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, found: {text}")
    return int(text)


def _megabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"must be a number above 0, at most 1000, found: {text}")
    return value


__all__ = ["add_app_arguments", "run_app"]
