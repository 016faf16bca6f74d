"""Limits on what arrives over the network, and how slowly it may: the guard and the web server, without Gradio."""

import asyncio
import contextlib
import json
import socket
import threading

import pytest

from ecgfm_hf.app.request_guard import MOST_QUEUED, RequestGuard

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


def test_fifty_uploads_at_once_queue_and_four_arrive_at_a_time(tmp_path):
    now, most = 0, 0

    async def counts(scope, receive, send):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await reads_all(scope, receive, send)
        now -= 1

    guarded = guard(tmp_path, counts)

    async def many(count):
        return await asyncio.gather(*(ask(guarded, "/gradio_api/upload", [b"x"] * 2, pause=0.01) for _ in range(count)))

    assert [status for status, _ in asyncio.run(many(50))] == [200] * 50
    assert most == 4
    statuses = [status for status, _ in asyncio.run(many(4 + MOST_QUEUED + 10))]
    assert statuses == [200] * (4 + MOST_QUEUED) + [503] * 10
    assert [status for status, _ in asyncio.run(many(3))] == [200] * 3, "ended and refused ones do not count"


def test_uploads_wait_while_the_folder_is_full(tmp_path):
    waiting = tmp_path / "waiting"
    waiting.write_bytes(bytes(4 * 8 * 1000 + 1))
    assert asyncio.run(ask(guard(tmp_path, queue_seconds=0.1), "/gradio_api/upload", [b"x"]))[0] == 503

    async def read_meanwhile():
        asked = asyncio.create_task(ask(guard(tmp_path), "/gradio_api/upload", [b"x"]))
        await asyncio.sleep(0.1)
        waiting.unlink()
        return await asked

    assert asyncio.run(read_meanwhile())[0] == 200


def test_replies_and_requests_name_no_path_of_the_server(tmp_path):
    file = tmp_path / "hash" / "a.edf"
    seen = []

    async def stores(scope, receive, send):
        seen.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"999")]})
        await send({"type": "http.response.body", "body": json.dumps([str(file)]).encode()})

    guarded = guard(tmp_path, stores)
    status, text = asyncio.run(ask(guarded, "/gradio_api/upload", [b"x"]))
    assert (status, json.loads(text)) == (200, ["/uploads/hash/a.edf"])
    assert str(tmp_path) not in asyncio.run(ask(guarded, "/gradio_api/queue/data", method="GET"))[1]
    question = json.dumps({"data": [{"path": "/uploads/hash/a.edf"}]}).encode()
    assert asyncio.run(ask(guarded, "/gradio_api/queue/join", [question]))[0] == 200
    assert json.loads(seen[-1]["body"]) == {"data": [{"path": str(file)}]}
    for path in (str(file), "/uploads/../../etc/passwd", "/uploads/", 3):
        question = json.dumps({"data": [{"path": path}]}).encode()
        assert asyncio.run(ask(guarded, "/gradio_api/queue/join", [question]))[0] == 400, path


def test_a_failure_is_logged_by_its_kind_alone(tmp_path, caplog):
    async def fails(scope, receive, send):
        raise RuntimeError("Zweistein.edf")

    status, text = asyncio.run(ask(guard(tmp_path, fails), "/", method="GET"))
    assert status == 500
    assert "RuntimeError" in caplog.text
    assert "Zweistein" not in caplog.text + text


def test_the_page_is_opened_by_its_address_and_the_names_that_it_was_given(tmp_path):
    guarded = RequestGuard(reads_all, tmp_path, 1000, frozenset(("0.0.0.0", "ecg.clinic.example")))

    async def status(host, server):
        sent = []

        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        headers = [(b"host", host.encode())]
        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "server": (server, 7860)}
        await guarded(scope, receive, send)
        return sent[0]["status"]

    for host, expected in (
        ("10.1.2.3:7860", 200),
        ("ECG.clinic.example:7860", 200),
        ("evil.example:7860", 421),
        ("10.1.2.4:7860", 421),
        ("", 421),
    ):
        assert asyncio.run(status(host, "10.1.2.3")) == expected, host
    assert asyncio.run(status("[fe80::1]:7860", "fe80::1")) == 200
    assert asyncio.run(status("[fe80::1].evil.example:7860", "fe80::1")) == 421


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


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"\r\n" + HEAD], ids=["nothing", "half a head", "half a second"])
def test_a_client_whose_request_is_incomplete_is_disconnected(sent):
    with served(answers_slowly, patience=0.5) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(60)
        client.sendall(sent)
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
