"""The page as a web server, by default for this machine only. It leaves no files behind."""

import contextlib
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pipeline_ecgfm import ECGClassificationPipeline
from ..utils.files import locked_folder, remove_abandoned
from . import html
from .page import build_page, theme
from .page_scoring import PageScorer
from .reader_process import SessionReaders
from .request_guard import MOST_QUEUED, RequestGuard
from .uploads import MEGABYTE, sweep

logger = logging.getLogger(__name__)

LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))
_ABANDONED_SECONDS = 900.0  # after which an upload that was not read is removed
_SWEEP_SECONDS = 30.0
_FOLDER = "ecgfm-app-"  # begins its name

# Set before Gradio is imported. It would report usage, ask for newer versions, and keep files where every user of the
# machine can see them.
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@dataclass(frozen=True)
class AppSettings:
    """
    Settings of the page.

    Attributes:
        model_name: Shown in the page's head.
        host: Address to listen at.
        names: Further names under which browsers may open the page, such as its name in the network.
        max_mb: Largest upload, all files together, in MB (2^20 bytes).
    """

    model_name: str
    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()
    max_mb: float = 20.0

    @property
    def max_bytes(self) -> int:
        """`max_mb` in bytes."""
        return int(self.max_mb * MEGABYTE)


@contextlib.contextmanager
def uploads_folder() -> Iterator[Path]:
    """
    Yield a folder that only this user can read, where Gradio keeps uploads, and remove it afterwards.

    Folders of earlier processes that were killed are removed too. Gradio must not be in use yet.
    """
    remove_abandoned(Path(tempfile.gettempdir()), _FOLDER)
    with locked_folder(lambda: tempfile.mkdtemp(prefix=_FOLDER)) as made:
        folder = made.resolve() / "uploads"
        folder.mkdir()
        wanted = {**_ENVIRONMENT, "GRADIO_TEMP_DIR": str(folder)}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield folder
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


class _TypeOnlyTraceback:
    """
    Replace `traceback` in Gradio, which would print the content of unexpected requests: names of files, or text that a
    stranger wants to show on this terminal.
    """

    @staticmethod
    def print_exc(*_: Any, **__: Any) -> None:
        logger.error("a request failed: %s", type(sys.exc_info()[1]).__name__)


def build_app(
    pipeline: ECGClassificationPipeline, reader: SessionReaders, folder: Path, settings: AppSettings
) -> RequestGuard:
    """
    Return the page as an ASGI application.

    Args:
        pipeline: From `load_pipeline`.
        reader: Reads files.
        folder: From [`uploads_folder`].
        settings: [`AppSettings`].

    Raises:
        ImportError: gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'ecgfm-hf[app]'") from error
    from fastapi import FastAPI
    from gradio import queueing, route_utils, routes

    for module in (queueing, route_utils, routes):
        vars(module)["traceback"] = _TypeOnlyTraceback

    scorer = PageScorer(pipeline, reader, folder, settings.max_bytes, settings.model_name)
    blocks = build_page(scorer, settings.model_name, list(pipeline.model.config.label_names), settings.max_bytes)
    # Mounted, not launched: launching asks the network for versions and can share a page publicly.
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        server_name=settings.host,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=settings.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme(),
        css=html.stylesheet(),
    )
    names = frozenset(name.lower() for name in (settings.host, *settings.names))
    return RequestGuard(app, folder, settings.max_bytes, LOOPBACK | names)


def listen(host: str, port: int) -> socket.socket:
    """
    Return a socket that listens at this address.

    Raises:
        OSError: the address is taken or cannot be used.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)  # connections wait until the page is ready
    except OSError:
        found.close()
        raise
    return found


def web_server(app: Any, patience: float = 10.0) -> Any:
    """
    Return a `uvicorn.Server` that logs no requests, since they contain file names.

    It closes connections that leave a request's head unfinished for about `patience` seconds; uvicorn itself would wait
    forever.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class ImpatientProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch(None)

        def _watch(self, before: tuple[bool, Any] | None) -> None:
            if self.transport.is_closing():
                return
            now = self.cycle is None or self.cycle.response_complete, self.cycle
            if now == before and now[0]:  # still waits for the same request
                self.transport.abort()
            else:
                self.loop.call_later(patience, self._watch, now)

    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=4 * MOST_QUEUED,  # a visitor's browser holds several connections
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def serve(app: RequestGuard, found: socket.socket, folder: Path) -> None:
    """Serve `app` until SIGINT (`KeyboardInterrupt`)."""
    ended = threading.Event()

    def remove_abandoned() -> None:
        while not ended.wait(_SWEEP_SECONDS):
            sweep(folder, _ABANDONED_SECONDS, time.time())

    threading.Thread(target=remove_abandoned, daemon=True).start()
    try:
        web_server(app).run(sockets=[found])
    finally:
        ended.set()
        found.close()


__all__ = ["LOOPBACK", "AppSettings", "build_app", "listen", "serve", "uploads_folder", "web_server"]
