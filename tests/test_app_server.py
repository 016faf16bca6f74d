"""`ecgfm app` as a process: over HTTP with what a stranger may send, and in a real Chromium."""

import contextlib
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from browsing import CHROMIUM, Browser, httpx
from device_files import aecg
from device_files import samples as device_samples
from inference_cases import write_model
from test_app_uploads import LAUGHS, archive
from wfdb_files import random_samples, write_record

pytestmark = pytest.mark.slow  # a server, a browser, and a reader process for each visitor

NAME = "Zweistein"  # of recordings; it must not get into the log
START = "import sys; from ecgfm_hf.cli.main import main; sys.exit(main(['app', *sys.argv[1:]]))"


class Page:
    """A running `ecgfm app`, and a client as the browser's scripts are one."""

    def __init__(self, model, folder, *arguments):
        self.folder, self.log = folder, folder / "log"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, "--model", str(model), "--port", "0", "--max-mb", "1", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"},
            )
        until = time.monotonic() + 300
        while not (found := re.search(r"ecgfm: (http://\S+) ", self.text())):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < until, self.text()
            time.sleep(0.2)
        self.address = found[1]
        self.client = httpx.Client(base_url=self.address, timeout=120, trust_env=False)

    def text(self):
        return self.log.read_text()

    def content(self):
        """Files that hold something, of all that the page has made."""
        found = [path for path in self.temporary.rglob("*") if path.is_file() and path.stat().st_size]
        return [path for path in found if "chromium" not in str(path)]

    def upload(self, *files):
        return self.client.post("/gradio_api/upload", files=[("files", file) for file in files])

    def ask(self, data, event="upload"):
        config = self.client.get("/config").json()
        (number,) = (one["id"] for one in config["dependencies"] if any(t[1] == event for t in one["targets"]))
        session = uuid.uuid4().hex
        body = {"data": data, "fn_index": number, "session_hash": session, "trigger_id": None, "event_data": None}
        return self.client.post("/gradio_api/queue/join", json=body), session

    def answer(self, *files, facts=("", "", "", "")):
        """The text of what the page shows for files that are dropped on it."""
        paths = self.upload(*files)
        assert paths.status_code == 200, paths.text
        given = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths.json()]
        event = self.done(*self.ask([given, *facts, *["model default"] * 4]))
        assert event["success"], event
        assert self.content() == []
        return html.unescape(json.dumps(event["output"]["data"], ensure_ascii=False))

    def done(self, joined, session):
        """The event that ends a question."""
        assert joined.status_code == 200, joined.text
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
            for line in events.iter_lines():
                if line.startswith("data:") and (event := json.loads(line[5:]))["msg"] == "process_completed":
                    return event
        raise AssertionError("no answer")

    def end(self, how=signal.SIGTERM):
        self.client.close()
        self.process.send_signal(how)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def page(tmp_path_factory, tiny_config):
    pytest.importorskip("gradio")
    config = tiny_config(label_thresholds={"A": 0.0}, label_notes={"A": "<script>window.hit=1</script>"})
    folder = tmp_path_factory.mktemp("page")
    page = Page(write_model(folder / "model", config), folder)
    yield page
    if page.process.poll() is None:
        page.end()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A header and its signal file."""
    folder = tmp_path_factory.mktemp("made")
    header, _ = write_record(
        folder, random_samples(samples=5000), name=NAME, comments=["#<script>window.hit=1</script>"]
    )
    return header, header.with_suffix(".dat")


def as_uploads(*paths):
    return [(path.name, path.read_bytes()) for path in paths]


def test_a_pair_is_answered_and_gone(page, pair):
    answer = page.answer(*as_uploads(*pair))
    assert "data:image/png;base64," in answer
    assert f"{NAME}-scores.json" in answer
    assert NAME in answer


def test_a_file_of_a_device_is_answered(page):
    assert "ecg-sheet" in page.answer(("x.xml", aecg(device_samples(count=5000))))


def test_facts_are_taken_from_the_page(page):
    table = "\n".join([",".join(f"{v}" for v in row) for row in random_samples(samples=5000).T.tolist()])
    names = "I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6\n"
    file = ("t.csv", (names + table).encode()[:900_000].rsplit(b"\n", 1)[0])
    assert "does not contain its sampling rate" in page.answer(file)
    assert "ecg-sheet" in page.answer(file, facts=("500", "uV", "", ""))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([("bomb.zip", archive("zip"))], "archives"),
        ([("bomb.edf", archive("zip"))], "archives"),
        ([("bomb.dcm", archive("gz"))], "archives"),
        ([("laughs.xml", LAUGHS.encode())], "entities"),
        ([(f"{i}.dat", b"x%d" % i) for i in range(9)], "at most 8"),
        ([("a.edf", bytes(630_000)), ("b.edf", b"1" * 630_000)], "1.2 MB is too large, expected at most 1 MB"),
        ([("a" * 1000 + ".edf", b"x")], "unknown format"),
        ([("x\u202egpj.exe", b"x")], "unknown format"),
        ([("<img src=x onerror=alert(1)>.edf", b"x")], "unknown format"),
        ([("h.hea", b"h 1 500 100\n../../../../etc/passwd 16 1000/mV 16 0 0 0 0 I\n")], "the header's own folder"),
        ([("h.hea", b"h 1 500 100\n/etc/passwd 16 1000/mV 16 0 0 0 0 I\n")], "the header's own folder"),
        ([("h.hea", b"h/2 1 500 100\n../../a 50\n../../b 50\n")], "the header's own folder"),
        ([("h.hea", b"h 1 500 999999999999\nh.dat 16 1000/mV 16 0 0 0 0 I\n"), ("h.dat", b"ab")], "truncated"),
    ],
)
def test_hostile_uploads_are_refused_in_words(page, files, expected):
    answer = page.answer(*files)
    assert "ecg-refused" in answer
    assert expected in answer
    assert str(page.temporary) not in answer
    assert "reading-" not in answer


@pytest.mark.parametrize("name", ["../../outside.hea", "/etc/outside.hea", "..\\..\\outside.hea", "..", "a/../../b"])
def test_no_name_leads_out_of_the_folder(page, name):
    (folder,) = page.temporary.glob("ecgfm-app-*")
    answer = page.upload((name, b"outside"))
    if answer.status_code == 200:
        assert all(path.startswith("/uploads/") for path in answer.json())
        assert "ecgfm-app" not in answer.text
    else:
        assert answer.status_code == 400
    for path in page.content():
        assert folder in path.parents
        path.unlink()


def test_oversize_is_refused_while_it_comes(page):
    assert page.upload(("big.edf", bytes(1_100_000))).status_code == 413
    assert page.upload(("a" * 5000, b"x")).status_code == 413
    # However long it says it is, or does not say, and however many files it is cut into.
    assert page.upload(*[(f"{i}.dat", bytes(999_000)) for i in range(9)]).status_code == 413

    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="f"\r\n\r\n'
        for _ in range(300):
            yield bytes(1 << 16)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    with contextlib.suppress(httpx.TransportError):  # it may hang up, which is as good
        assert page.client.post("/gradio_api/upload", content=endless(), headers=headers).status_code == 413
    assert page.client.post("/gradio_api/queue/join", content=bytes(1 << 19)).status_code == 413
    for path in page.content():
        path.unlink()  # what had come is swept later


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/x", "https://example.com/x.edf", "x\0", "..", 7])
def test_a_question_may_name_nothing_but_uploads(page, path):
    answer, _ = page.ask([[{"path": path, "meta": {"_type": "gradio.FileData"}}], "", "", "", "", *["x"] * 4])
    assert answer.status_code == 400


def test_what_no_page_would_ask_fails_quietly(page):
    (path,) = page.upload((f"{NAME}.edf", b"x")).json()
    file, rest = [{"path": path, "meta": {"_type": "gradio.FileData"}}], ["model default"] * 4
    for given in (
        [[path], "", "", "", "", *rest],
        [[{"path": path}], "", "", "", "", *rest],
        [[{"url": "http://127.0.0.1:1/", "meta": {"_type": "gradio.FileData"}}], "", "", "", "", *rest],
        [file, NAME, [], {}, NAME, 1, 2, 3, 4],
        [file, None, "", "", None, f"\x1b[2J{NAME}", *rest[1:]],
        [file],
    ):
        event = page.done(*page.ask(given))
        assert not event["success"]
        assert "data" not in event["output"]
    assert page.client.post("/gradio_api/queue/join", json={"data": [NAME], "fn_index": 999}).status_code != 200
    (stored,) = page.content()
    stored.unlink()
    assert "no longer there" in json.dumps(page.done(*page.ask([file, "", "", "", "", *rest])))


def test_one_session_does_not_see_what_another_has_dropped(page, pair):
    assert NAME in page.answer(*as_uploads(*pair))
    event = page.done(*page.ask(["", "10 mm/mV", 0], event="release"))
    assert "no longer in memory" in json.dumps(event)
    assert NAME not in json.dumps(event)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/gradio_api/file=/etc/passwd",
            "/gradio_api/info",
            "/gradio_api/openapi.json",
            "/monitoring",
            "/docs",
            "/login",
        ),
        *("/gradio_api/proxy=https://example.com/", "/gradio_api/runs", "/gradio_api/deep_link", "/?deep_link=x"),
        *(
            "/assets/..%2f..%2fconfig",
            "/static/%2e%2e/%2e%2e/app.py",
            "/openapi.json",
            "/gradio_api/app_id",
            "/nothing",
        ),
    ],
)
def test_routes_that_the_page_does_not_need_are_closed(page, path):
    assert page.client.send(page.client.build_request("GET", page.address + path)).status_code == 404


@pytest.mark.parametrize(
    "path", ["/gradio_api/run/predict", "/gradio_api/api/on_upload", "/gradio_api/call/on_upload", "/"]
)
def test_functions_are_called_by_the_page_alone(page, path):
    assert page.client.post(path, json={"data": []}).status_code == 404


def test_other_sites_reach_nothing(page):
    assert page.client.get("/", headers={"host": "evil.example"}).status_code == 421
    answer = page.client.post("/gradio_api/upload", files={"files": b"x"}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert page.content() == []


def test_the_page_forbids_the_browser_everything_but_itself(page):
    headers = page.client.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    scripts = re.search(r"script-src ([^;]+);", policy)[1].split()
    assert scripts[0] == "'self'"
    assert len(scripts) > 1
    assert all(re.fullmatch(r"'sha256-[\w+/=]+'", one) for one in scripts[1:])
    assert "connect-src 'self'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "fonts.g" not in page.client.get("/").text
    assert "fonts.g" not in page.client.get("/theme.css").text
    assert "server" not in headers


def test_it_listens_here_alone(page):
    port = httpx.URL(page.address).port
    listening = [
        line.split()[1]
        for file in ("/proc/net/tcp", "/proc/net/tcp6")
        if os.path.exists(file)
        for line in Path(file).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening in ([f"0100007F:{port:04X}"], []), "127.0.0.1 and nothing else"


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path)
    yield browser
    browser.close()


@needs_chromium
def test_in_a_browser_a_dropped_recording_is_answered_from_this_machine_alone(page, pair, browser):
    browser.open(page.address)
    browser.wait("!!document.querySelector('input[type=file]')")
    browser.choose_files(*pair)
    browser.wait("document.querySelector('.ecg-sheet img')?.naturalWidth > 1000")
    assert browser.js("document.querySelectorAll('section.ecg-scores tbody tr').length") == 3
    assert page.content() == []
    # What notes say is shown, and not run.
    assert "<script>window.hit=1</script>" in browser.js("document.querySelector('.ecg-scores').innerText")
    assert browser.js("window.hit") is None

    # The warning stays in sight, on paper wider than a phone too.
    for width in (1280, 390):
        browser.size(width, 844)
        browser.js("window.scrollTo(0, document.body.scrollHeight)")
        seen = browser.js(
            "(() => { const b = document.querySelector('.ecg-banner').getBoundingClientRect(); const e ="
            " document.elementFromPoint(b.x + b.width / 2, b.y + 8);"
            " return [b.top, b.height > 20, !!e.closest('.ecg-banner'), scrollY > 100]; })()"
        )
        assert seen == [0, True, True, True]
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")

    # Saliency of a label that is chosen.
    browser.size(1280, 900)
    before = browser.js("document.querySelector('.ecg-sheet img').src")
    browser.click("document.querySelector('input[aria-label=Saliency]')")
    browser.wait("document.querySelectorAll('[role=option]').length === 5")
    browser.click("[...document.querySelectorAll('[role=option]')].find(o => o.innerText.trim() === 'B')")
    browser.wait(f"document.querySelector('.ecg-sheet img').src !== {json.dumps(before)}")

    # Downloads hold what they say.
    content = browser.js(
        "fetch; (async () => { const a = [...document.querySelectorAll('a.ecg-download')];"
        " return a.map(e => [e.download, atob(e.href.split(',')[1]).slice(0, 5)]); })()"
    )
    assert content == [[f"{NAME}-scores.json", "[\n {\n"], [f"{NAME}-page.pdf", "%PDF-"]]

    elsewhere = [one for one in browser.requests if not one.startswith((page.address + "/", "data:", "blob:"))]
    assert elsewhere == []
    assert browser.messages == []


@needs_chromium
def test_in_a_browser_html_of_strangers_is_text(page, browser, tmp_path):
    lead = "<img src=x onerror=window.hit=1>"
    header, _ = write_record(tmp_path, random_samples(leads=2, samples=5000), leads=("I", lead), name="rec")
    browser.open(page.address)
    browser.wait("!!document.querySelector('input[type=file]')")
    browser.choose_files(header, header.with_suffix(".dat"))
    browser.wait("!!document.querySelector('.ecg-refused')")
    assert lead in browser.js("document.querySelector('.ecg-refused').innerText")
    assert browser.js("document.querySelectorAll('.ecg-refused img').length") == 0
    assert browser.js("window.hit") is None
    # Nor would it run if it were markup.
    browser.js("document.querySelector('.ecg-refused').innerHTML = '<img src=x onerror=\"window.hit=1\">'")
    time.sleep(0.5)
    assert browser.js("window.hit") is None


def test_the_end_leaves_nothing_behind_and_the_log_holds_no_names(page):
    assert page.end() == 0
    assert list(page.temporary.glob("ecgfm-app-*")) == []
    lines = page.text().splitlines()
    assert NAME not in page.text()
    assert [line for line in lines if "ecgfm:" in line] == [f"ecgfm: {page.address} (Ctrl-C ends it)"]
    assert not re.search(r"outside|bomb|Traceback|POST|GET", page.text())


def test_listening_to_the_world_is_warned_of_and_orphans_are_removed(tmp_path, tiny_config):
    pytest.importorskip("gradio")
    (tmp_path / "tmp").mkdir()
    model = write_model(tmp_path / "model", tiny_config())
    (tmp_path / "tmp").rmdir()
    page = Page(model, tmp_path, "--host", "0.0.0.0")
    try:
        assert "WARNING: other machines can reach 0.0.0.0" in page.text()
        (folder,) = page.temporary.glob("ecgfm-app-*")
        (folder / "upload.edf").write_bytes(b"x")
    finally:
        page.end(signal.SIGKILL)
    assert folder.exists()
    busy = subprocess.run(
        [sys.executable, "-c", START, "--model", str(tmp_path / "none"), "--port", "0"],
        env={**os.environ, "TMPDIR": str(page.temporary)},
        capture_output=True,
        text=True,
    )
    assert busy.returncode == 2
    assert "cannot load the model" in busy.stderr
    assert not folder.exists(), "a killed page's folder is removed by the next"
