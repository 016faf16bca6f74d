"""Chromium, driven through its DevTools protocol: enough of it to use a page and to see what it loads."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

# These come with gradio, not with the package.
httpx = pytest.importorskip("httpx")
connect = pytest.importorskip("websockets.sync.client").connect

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Browser:
    """One page in a headless Chromium. `requests` has the address of all that it asked for."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900):
        arguments = [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--remote-debugging-port=0"]
        arguments += ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        arguments += ["--disable-component-update", "--disable-dev-shm-usage"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            arguments.append("--no-sandbox")  # which root cannot have
        self._process = subprocess.Popen(
            [CHROMIUM, *arguments, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            port = self._port(profile / "DevToolsActivePort")
            pages = httpx.get(f"http://127.0.0.1:{port}/json", timeout=60, trust_env=False).json()
            address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            # Left open until the page is closed.
            self._open = contextlib.ExitStack()
            self._socket = self._open.enter_context(connect(address, max_size=1 << 28, open_timeout=60, proxy=None))
        except BaseException:
            self.close()
            raise
        self._number, self._answers, self._arrived = 0, {}, threading.Condition()
        self.requests, self.messages = [], []
        threading.Thread(target=self._listen, daemon=True).start()
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def _port(self, file: Path) -> str:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            if file.exists() and len(lines := file.read_text().split()) == 2:
                return lines[0]
            time.sleep(0.1)
        raise RuntimeError("Chromium does not start")

    def _listen(self):
        for message in self._socket:
            message = json.loads(message)
            with self._arrived:
                if "id" in message:
                    self._answers[message["id"]] = message
                    self._arrived.notify_all()
                elif message["method"] == "Network.requestWillBeSent":
                    self.requests.append(message["params"]["request"]["url"])
                elif message["method"] == "Runtime.exceptionThrown":
                    self.messages.append(json.dumps(message["params"]["exceptionDetails"])[:500])
                elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                    entry = message["params"]["entry"]
                    self.messages.append(f"{entry['text']} {entry.get('url', '')}")

    def call(self, method, **parameters):
        self._number += 1
        number = self._number
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        with self._arrived:
            if not self._arrived.wait_for(lambda: number in self._answers, timeout=120):
                raise TimeoutError(method)
            answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def js(self, expression: str):
        """The value of an expression on the page."""
        return self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)[
            "result"
        ].get("value")

    def wait(self, expression: str, seconds: float = 120):
        """Until an expression is true."""
        until = time.monotonic() + seconds
        while not self.js(expression):
            if time.monotonic() > until:
                raise TimeoutError(expression)
            time.sleep(0.2)

    def open(self, address: str):
        self.call("Page.navigate", url=address)

    def choose_files(self, *paths):
        """As a user does by dropping files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path) for path in paths], nodeId=node)

    def click(self, element: str):
        """On the middle of an element, given as an expression."""
        point = self.js(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=point[0], y=point[1], button="left", clickCount=1)

    def size(self, width: int, height: int):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path, whole: bool = False):
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self):
        if hasattr(self, "_socket"):
            self._open.close()
        self._process.terminate()
        self._process.wait(30)
