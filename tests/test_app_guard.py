"""Limits on what arrives over the network, and how slowly it may: the guard and the web server, without Gradio."""

import asyncio
import contextlib
import socket
import threading

import pytest

from ecgfm_hf.app.request_guard import RequestGuard

HOSTS = frozenset(("127.0.0.1",))


async def reads_all(scope, receive, send):
    """An application that reads a request to its end, and answers with its size."""
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def guard(folder, app=reads_all, **settings):
    return RequestGuard(app, folder, 1000, HOSTS, **settings)


async def ask(guarded, path, parts=(), pause=0.0, method="POST"):
    """(status, text) for a body that comes in `parts`, with `pause` seconds before each."""
    waiting, sent = list(parts), []

    async def receive():
        await asyncio.sleep(pause)
        body = waiting.pop(0) if waiting else b""
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"host", b"127.0.0.1:1")]}
    await guarded(scope, receive, send)
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:]).decode()


def test_a_request_that_trickles_in_is_not_waited_for(tmp_path):
    guarded = guard(tmp_path, upload_seconds=0.2, request_seconds=0.2)
    for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/cancel"):
        status, text = asyncio.run(ask(guarded, path, [b"x"] * 1000, pause=0.05))
        assert (status, text) == (408, "the request took too long to arrive")
    assert asyncio.run(ask(guarded, "/gradio_api/upload", [b"x"] * 3)) == (200, "3")


def test_a_body_is_read_no_further_than_its_limit(tmp_path):
    guarded = guard(tmp_path)
    assert asyncio.run(ask(guarded, "/gradio_api/upload", [bytes(10_000)] * 100)) == (413, "the request is too large")
    assert asyncio.run(ask(guarded, "/gradio_api/cancel", [bytes(10_000)] * 100)) == (413, "the request is too large")
    assert asyncio.run(ask(guarded, "/gradio_api/upload", [bytes(10_000)] * 7)) == (200, "70000")


def test_few_uploads_are_taken_at_once_and_ended_ones_do_not_count(tmp_path):
    guarded = guard(tmp_path)

    async def many():
        return await asyncio.gather(*(ask(guarded, "/gradio_api/upload", [b"x"] * 3, pause=0.05) for _ in range(7)))

    for _ in range(2):
        assert sorted(status for status, _ in asyncio.run(many())) == [200] * 4 + [503] * 3


def test_uploads_wait_while_the_folder_is_full(tmp_path):
    (tmp_path / "waiting").write_bytes(bytes(4 * 8 * 1000 + 1))
    assert asyncio.run(ask(guard(tmp_path), "/gradio_api/upload", [b"x"]))[0] == 503


def test_a_failure_is_logged_by_its_kind_alone(tmp_path, caplog):
    async def fails(scope, receive, send):
        raise RuntimeError("Zweistein.edf")

    status, text = asyncio.run(ask(guard(tmp_path, fails), "/", method="GET"))
    assert status == 500
    assert "RuntimeError" in caplog.text
    assert "Zweistein" not in caplog.text + text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1].evil.example:80"])
def test_no_other_name_leads_to_the_page(tmp_path, host):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host.encode())]}
    asyncio.run(guard(tmp_path)(scope, None, send))
    assert sent[0]["status"] == 421


@contextlib.contextmanager
def served(app, **settings):
    """The port of `app` behind the web server, in a thread."""
    pytest.importorskip("uvicorn")
    from ecgfm_hf.app.server import listen, web_server

    found = listen("127.0.0.1", 0)
    server = web_server(app, **settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [found]}, daemon=True)
    thread.start()
    try:
        yield found.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        found.close()


async def answers_slowly(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await asyncio.sleep(0.2)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"."})


HEAD = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + b"\r\n" + HEAD], ids=["nothing", "half a head", "half a second"])
def test_who_does_not_say_what_is_asked_for_is_hung_up_on(said):
    with served(answers_slowly, patience=0.5) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(60)
        client.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1000):
                pass


def test_a_long_answer_is_not_cut_short():
    with served(answers_slowly, patience=0.3) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(60)
        client.sendall(HEAD + b"Connection: close\r\n\r\n")
        got = b"".join(iter(lambda: client.recv(1000), b""))
    assert got.count(b"x\r\n") == 10
    assert b"1\r\n.\r\n" in got
