"""`ecgfm app`."""

import errno
import importlib.util
import os
import sys
from typing import Annotated, Literal

import typer

from .options import CommandFailed, DeviceOption, loading, quiet_libraries, sigterm_as_interrupt
from .outputs import Reads

_NEEDED = ("gradio", "matplotlib", "captum")


def app(
    model: Annotated[
        str, typer.Option("--model", metavar="DIR", help="Folder or Hub repository of a classifier."), Reads()
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="HOST",
            help="Address to listen at (default: 127.0.0.1). Repeat it for each further name under which browsers may "
            "open the page.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="PORT", help="0 takes any that is free.")
    ] = 7860,
    max_mb: Annotated[
        float, typer.Option("--max-mb", max=1000, metavar="MB", help="Largest upload, all files together.")
    ] = 20.0,
    device: DeviceOption = "cpu",
    # One recording at a time, and saliency needs gradients, which int8 does not have.
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(
            "--precision",
            "--dtype",
            help="auto: bfloat16 where the processor or GPU has instructions for it, else float32.",
        ),
    ] = "float32",
) -> int:
    """
    Serve a web page that scores recordings.

    The page shows the 12-lead ECG, scores and saliency, and offers JSON and PDF. Only this machine reaches it unless
    --host names another address. Files are deleted as soon as they are read, and nothing is sent anywhere.

    Exit status: 0 ended by Ctrl-C, 2 usage.
    """
    if not max_mb > 0:
        raise typer.BadParameter(f"--max-mb must be above 0 and at most 1000, found: {max_mb:g}")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise CommandFailed(f"the page needs {', '.join(missing)}: pip install 'ecgfm-hf[app]'")
    address, *names = host or ["127.0.0.1"]
    from ..app.reader_process import SessionReaders
    from ..app.server import LOOPBACK, AppSettings, build_app, listen, serve, uploads_folder
    from ..model_folder import load_pipeline
    from ..utils.logs import only_errors
    from ..utils.precision import keep_freed_memory

    keep_freed_memory()
    try:
        found = listen(address, port)
    except OSError as error:
        hint = " (--port 0 takes any that is free)" if error.errno == errno.EADDRINUSE else ""
        raise CommandFailed(f"cannot listen at {address}, port {port}: {error.strerror or error}{hint}") from error
    reader = SessionReaders()
    try:
        with found, only_errors("ecgfm_hf"), quiet_libraries(), sigterm_as_interrupt(), uploads_folder() as folder:
            reader.start()
            with loading(model):
                pipeline = load_pipeline(model, device=device, precision=precision)
            name = os.path.basename(os.path.normpath(model))
            page = build_app(pipeline, reader, folder, AppSettings(name, address, tuple(names), max_mb))
            if address not in LOOPBACK:
                print(
                    f"ecgfm: WARNING: other machines can reach {address}. Anyone there can use the page without a "
                    "password, and uploads are not encrypted. Browsers open it by its address; for a name, add --host "
                    "NAME",
                    file=sys.stderr,
                )
            shown = f"[{address}]" if ":" in address else address
            print(f"ecgfm: http://{shown}:{found.getsockname()[1]} (Ctrl-C ends it)", flush=True)
            serve(page, found, folder)
    except KeyboardInterrupt:
        return 0
    finally:
        reader.close()
    return 0
