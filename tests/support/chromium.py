"""A headless Chromium, controlled through its debugging pipe: no port, no driver, no further package."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
)
READY = "performance.getEntriesByName('traces ready').length > 0"  # the page's scripts are done


class Chromium:
    """One tab, as a context manager; ``errors`` lists the errors on its console."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._number, self._session, self._rest = 0, None, b""

    def __enter__(self) -> "Chromium":
        self._home = tempfile.mkdtemp()
        (browser_in, self._out), (self._in, browser_out) = os.pipe(), os.pipe()

        def connect() -> None:  # the browser reads commands from descriptor 3 and answers on 4
            # copies above 9: dup2 of a descriptor to itself would leave it closed on exec
            copies = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (browser_in, browser_out)]
            os.dup2(copies[0], 3)
            os.dup2(copies[1], 4)

        self._process = subprocess.Popen(
            [EXECUTABLE, *FLAGS.split(), f"--user-data-dir={self._home}", "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_in)
        os.close(browser_out)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        shutil.rmtree(self._home, ignore_errors=True)

    def call(self, method: str, **parameters: object) -> dict:
        """One command of the DevTools protocol; returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("chromium exited")
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"].get("exception", params))[:500])
        elif (method == "Log.entryAdded" and params["entry"]["level"] == "error") or (
            method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert")
        ):
            self.errors.append(json.dumps(params)[:500])
        return message

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression in the page; awaits a promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['result'].get('description')}")
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s: {expression}; {self.errors}")
            time.sleep(0.02)

    def look(self, width: int, height: int = 900, scheme: str = "light", media: str = "screen") -> None:
        """Size of the window in CSS pixels, colour scheme, and medium."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file and wait until it is complete."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"file://{path}{fragment}")
        self.wait_for("document.readyState == 'complete' && location.protocol == 'file:'")

    def show(
        self, path: Path, fragment: str = "", width: int = 1440, height: int = 900, scheme: str = "light"
    ) -> None:
        """Load a report page and wait until its scripts are done."""
        self.look(width, height, scheme)
        self.open(path, fragment)
        self.wait_for(READY)

    def press(self, *keys: str) -> None:
        """Press keys one after another; keys have the names of keyboard events."""
        for key in keys:
            text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
            codes = {"Enter": 13, "Escape": 27, "Tab": 9, "End": 35, "Home": 36, "PageDown": 34}
            codes |= {"ArrowDown": 40, "ArrowUp": 38, "PageUp": 33}
            code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        """A PNG of the window, or of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def pdf(self, path: Path) -> Path:
        """The page as it prints."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF")["data"]))
        return path
