"""A guard between the network and Gradio: it admits only the routes that the page needs, and limits requests."""

import asyncio
import base64
import hashlib
import json
import logging
import os
import posixpath
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .uploads import MOST_FILES, stored_bytes

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Gradio has many more: files, proxies, API documentation, saved runs, deep links, monitoring.
_GET = frozenset(
    (
        *("/", "/config", "/theme.css", "/gradio_api/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
        *("/gradio_api/startup-events", "/gradio_api/queue/data", "/gradio_api/upload_progress"),
    )
)
_GET_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_UPLOAD, _JOIN, _EVENTS = "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data"
_PAUSE = 0.05  # seconds between two looks whether an upload may arrive
_POST = frozenset((_UPLOAD, _JOIN, "/gradio_api/cancel", "/gradio_api/reset"))

_LARGEST_REQUEST = 1 << 18  # bytes of any request but an upload
_ENVELOPE = 1 << 16  # bytes of an upload that are not the files
_MOST_AT_ONCE = 4  # uploads that arrive at once, and uploads of the largest size that wait to be read
MOST_QUEUED = 128  # uploads that wait for their turn to arrive, and those that wait to be read
_FOLDER = "/uploads/"  # stands for the folder of uploads in requests and replies, which name no path of the server

# The browser loads nothing from other servers and runs only this server's scripts.
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; manifest-src 'self'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'"
)
_SCRIPT = re.compile(rb"<script(?:\s[^>]*)?>(.*?)</script\s*>", re.DOTALL | re.IGNORECASE)
_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::\d*)?")
_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class _Refused(Exception):
    """Raised when a request is not read to its end."""


class RequestGuard:
    """
    An ASGI application that guards another.

    Args:
        app: The guarded application.
        incoming: The folder of uploads. Requests may name only files in it.
        max_bytes: Largest upload.
        hosts: Names that the server accepts as its own, beside the address at which a request arrived. This stops
            other sites whose name resolves to this machine (DNS rebinding).
        upload_seconds, request_seconds: Longest time for an upload, and for any other request, to arrive.
        queue_seconds: Longest time that an upload waits for its turn.
    """

    def __init__(
        self,
        app: Any,
        incoming: Path,
        max_bytes: int,
        hosts: frozenset[str],
        upload_seconds: float = 300.0,
        request_seconds: float = 30.0,
        queue_seconds: float = 600.0,
    ):
        self._app, self._incoming, self._max_bytes, self._hosts = app, incoming, max_bytes, hosts
        self._upload_seconds, self._request_seconds = upload_seconds, request_seconds
        self._queue_seconds = queue_seconds
        self._queued = self._uploading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._guarded(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = _with_policy(_without_folder(send, self._incoming, scope["path"]))
        refused = self._refusal(scope)
        if refused is not None:
            await _answer(send, *refused)
        elif scope["path"] != _UPLOAD:
            await self._within_limits(scope, receive, send, False)
        elif not await self._own_turn():
            await _answer(send, 503, "too many files are waiting: try again in some minutes")
        else:
            try:
                await self._within_limits(scope, receive, send, True)
            finally:
                self._uploading -= 1

    async def _own_turn(self) -> bool:
        """Wait until an upload may arrive, and count it; return False if too many wait, or for too long."""
        if self._queued >= MOST_QUEUED:
            return False
        until = asyncio.get_running_loop().time() + self._queue_seconds
        self._queued += 1
        try:
            while self._uploading >= _MOST_AT_ONCE or (
                stored_bytes(self._incoming) > _MOST_AT_ONCE * MOST_FILES * self._max_bytes
            ):
                if asyncio.get_running_loop().time() > until:
                    return False
                await asyncio.sleep(_PAUSE)
            self._uploading += 1
            return True
        finally:
            self._queued -= 1

    async def _within_limits(self, scope: Scope, receive: Receive, send: Send, is_upload: bool) -> None:
        started = False
        refused: tuple[int, str] | None = None

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if refused is None:  # otherwise the application answers a request that it did not receive whole
                started = True
                await send(message)

        most = self._most_uploaded if is_upload else _LARGEST_REQUEST
        until = asyncio.get_running_loop().time() + (self._upload_seconds if is_upload else self._request_seconds)
        received, whole = 0, scope["method"] != "POST"

        async def limited() -> MutableMapping[str, Any]:
            nonlocal received, refused, whole
            if whole:  # the next message is that the client left
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - asyncio.get_running_loop().time())
            except TimeoutError:
                refused = 408, "the request took too long to arrive"
                raise _Refused from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > most:
                refused = 413, "the request is too large"
                raise _Refused
            return message

        try:
            given: Receive = limited
            if scope["path"] == _JOIN:
                body = await _whole_body(limited)
                if body is None:
                    return
                body = _with_uploads(self._incoming, body)
                if body is None:
                    return await _answer(answer, 400, "only files that were dropped on the page are read")
                given = _replayed(body, receive)
            await self._app(scope, given, answer)
        except Exception as error:
            if refused is None:
                # Only the type: messages may contain file names.
                logger.error("a request failed: %s", type(error).__name__)
                if not started:
                    await _answer(answer, 500, "the request failed; the log has the type of the error")
        if refused is not None and not started:
            await _answer(send, *refused)

    @property
    def _most_uploaded(self) -> int:
        return MOST_FILES * self._max_bytes + _ENVELOPE

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and text if a request is refused."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        host = headers.get("host", "")
        if _name_of(host) not in (*self._hosts, (scope.get("server") or (None,))[0]):
            return 421, "this page is not served under that name"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "this page accepts no requests from other pages"
        if method in ("GET", "HEAD"):
            below = path.startswith(_GET_BELOW) and posixpath.normpath(path) == path and "\\" not in path
            if not (path in _GET or below):
                return 404, "there is nothing here"
            if any(name == "deep_link" for name, _ in parse_qsl(scope.get("query_string", b"").decode("latin-1"))):
                return 404, "there is nothing here"
            return None
        if method != "POST" or path not in _POST:
            return 404, "there is nothing here"
        if path == _UPLOAD:
            declared = headers.get("content-length", "")
            if declared.isdecimal() and int(declared) > self._most_uploaded:
                return 413, "the request is too large"
        return None


def _with_policy(send: Send) -> Send:
    """Add our headers to answers. A page's own scripts are listed by their hashes, so that no others run."""
    start: MutableMapping[str, Any] = {}
    parts: list[bytes] = []
    is_page = False

    async def send_on(scripts: str) -> None:
        ours = {**_HEADERS, "content-security-policy": _POLICY.format(scripts=scripts)}
        kept = [(name, value) for name, value in start.get("headers", ()) if name.decode("latin-1").lower() not in ours]
        added = [(name.encode(), value.encode()) for name, value in ours.items()]
        await send({**start, "headers": [*kept, *added]})

    async def guarded(message: MutableMapping[str, Any]) -> None:
        nonlocal start, is_page
        if message["type"] == "http.response.start":
            start = message
            is_page = dict(start.get("headers", ())).get(b"content-type", b"").startswith(b"text/html")
            if not is_page:
                await send_on("'self'")
        elif not is_page:
            await send(message)
        else:
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                content = b"".join(parts)
                hashes = (base64.b64encode(hashlib.sha256(one).digest()).decode() for one in _SCRIPT.findall(content))
                await send_on(" ".join(["'self'", *(f"'sha256-{one}'" for one in hashes)]))
                await send({"type": "http.response.body", "body": content})

    return guarded


def _name_of(host: str) -> str:
    """Return a Host header without its port; an empty text for what is no name or address."""
    found = _HOST.fullmatch(host)
    return "" if found is None else (found[1] or found[2]).lower()


async def _answer(send: Send, status: int, text: str) -> None:
    content = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _whole_body(receive: Receive) -> bytes | None:
    """Return the whole body; `None` if the client left."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    first = True

    async def replay() -> MutableMapping[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _with_uploads(incoming: Path, body: bytes) -> bytes | None:
    """
    Return a request in which uploads have their real paths; `None` where it names anything but uploads. Gradio would
    fetch network addresses, and it logs the paths that it refuses.
    """
    try:
        content = json.loads(body)
        waiting = [content]
        while waiting:
            value = waiting.pop()
            if isinstance(value, list):
                waiting += value
            elif isinstance(value, dict):
                waiting += value.values()
                if value.get("path") is not None:
                    value["path"] = _upload_path(value["path"], incoming)
        return json.dumps(content).encode()
    except (ValueError, RecursionError):
        return None


def _upload_path(path: Any, incoming: Path) -> str:
    """Return the real path of an upload; `ValueError` for anything else."""
    if not isinstance(path, str) or not path.startswith(_FOLDER) or "\0" in path or len(path) > 4096:
        raise ValueError
    folder = os.path.realpath(incoming)
    real = os.path.realpath(os.path.join(folder, path.removeprefix(_FOLDER)))
    if not real.startswith(folder + os.sep):
        raise ValueError
    return real


def _without_folder(send: Send, incoming: Path, path: str) -> Send:
    """Replace the folder of uploads in replies: its path names folders and a process of this machine."""
    names = {f"{folder}{os.sep}".encode() for folder in (os.path.realpath(incoming), incoming)}
    start: MutableMapping[str, Any] = {}
    parts: list[bytes] = []

    def shown(content: bytes) -> bytes:
        for name in names:
            content = content.replace(name, _FOLDER.encode())
        return content

    async def replaced(message: MutableMapping[str, Any]) -> None:
        nonlocal start
        if path != _UPLOAD:  # files of the page, or a stream of events
            body = message.get("body")
            await send({**message, "body": shown(body)} if body and path == _EVENTS else message)
        elif message["type"] == "http.response.start":
            start = message
        else:
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                content = shown(b"".join(parts))
                headers = [pair for pair in start.get("headers", ()) if pair[0].lower() != b"content-length"]
                await send({**start, "headers": [*headers, (b"content-length", str(len(content)).encode())]})
                await send({"type": "http.response.body", "body": content})

    return replaced


__all__ = ["MOST_QUEUED", "RequestGuard"]
