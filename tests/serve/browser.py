"""A real Chromium for tests: driven over its DevTools pipe, with the keys and the mouse that a person has."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WAIT_S = 15.0  # for what takes a moment on a quiet machine
# Chromium reads commands from descriptor 3 and writes answers to 4
BRIDGE = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--disable-gpu",
    "--disable-extensions", "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--hide-scrollbars", "--mute-audio", "--disable-dev-shm-usage", "--force-color-profile=srgb",
)  # fmt: skip
KEYS = {
    "Enter": (13, "\r"), "Escape": (27, None), "Tab": (9, None), "ArrowUp": (38, None), "ArrowDown": (40, None),
    "Backspace": (8, None), "Home": (36, None), "End": (35, None), " ": (32, " "),
}  # fmt: skip
SHIFT = 8


def browser_program() -> str:
    """The path of a Chromium; without one the test is skipped, or fails where CI=true promises one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        words = f"no browser here: none of {', '.join(NAMES)} is installed"
        if os.environ.get("CI") == "true":
            pytest.fail(words)
        pytest.skip(words)
    return found


class Browser:
    """One Chromium without a window. Close it after use."""

    def __init__(self, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={folder}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        words = [sys.executable, "-S", "-c", BRIDGE, str(theirs_in), str(theirs_out), browser_program(), *flags]
        self._process = subprocess.Popen(
            words, pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._changed = threading.Condition(threading.RLock())
        self._is_over = False
        self._reader = threading.Thread(target=self._read, name="browser", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._in, 1 << 16):
            *messages, rest = (rest + piece).split(b"\0")
            with self._changed:
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self._events.append(message)
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result. Raises AssertionError where the browser refuses it."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self._is_over, WAIT_S + 5)
            answer = self._answers.pop(number, None)
        assert answer is not None, f"the browser did not answer {method}"
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def wait(self, look: Callable[[], Any], what: str) -> Any:
        """The first true answer, asked again whenever the browser says something."""
        with self._changed:
            self._changed.wait_for(lambda: look() or self._is_over, WAIT_S)
            value = look()
        assert value, f"{what} did not come within {WAIT_S:g} s"
        return value

    def events(self, session: str) -> list[dict[str, Any]]:
        """Everything a page reported so far."""
        with self._changed:
            return [event for event in self._events if event.get("sessionId") == session]

    def open(self, url: str, *, width: int = 1280, height: int = 800) -> "Page":
        """A new page in a context of its own: no cookies, no storage of other pages."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.size(width, height)
        page.go(url)
        return page

    def close(self) -> None:
        """Ends the browser and its processes."""
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        os.close(self._out)
        os.close(self._in)


class Page:
    """One page, used as a person does: look, click, type."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser = browser
        self.session = session
        self.target = target

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)

    def go(self, url: str) -> None:
        """Opens an address and waits until its scripts ran."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'", "the page")

    def reload(self) -> None:
        self.run("window.isOld = true")
        self.call("Page.reload")
        self.until("!window.isOld && document.readyState === 'complete'", "the page, loaded again")

    def size(self, width: int, height: int, *, is_phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=is_phone,
            deviceScaleFactor=2 if is_phone else 1,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)

    def dark(self, is_dark: bool) -> None:
        """What the system prefers."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str) -> Any:
        """The value of an expression in the page, a promise's once it is kept."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        problem = answer.get("exceptionDetails")
        assert problem is None, f"{script}: {problem['exception'].get('description', problem)}"
        return answer["result"].get("value")

    def until(self, script: str, what: str) -> Any:
        """The first true value of an expression, looked at a hundred times a second while nothing else waits."""
        wait_ms = int(1000 * WAIT_S)
        loop = (
            "new Promise((done) => { const end = performance.now() + %d; const look = () => { let value = null; "
            "try { value = (%s); } catch (error) { value = null; } value = value instanceof Node ? true : value; "
            "if (value || performance.now() > end) done(value || null); else setTimeout(look, 10); }; look(); })"
        )
        for _ in range(20):  # a page that is being left takes its promises with it
            try:
                value = self.run(loop % (wait_ms, script))
                break
            except AssertionError as error:
                if "navigated" not in str(error) and "context" not in str(error):
                    raise
        assert value, f"{what} did not come within {WAIT_S:g} s; the page says: {self.text()[-600:]}"
        return value

    def text(self, selector: str = "body") -> str:
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def texts(self, selector: str) -> list[str]:
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")

    def click(self, selector: str) -> None:
        """A real click in the middle of the first such element; it must be there, and nothing may cover it."""
        spot = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null; "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect(); "
            "const x = b.x + b.width / 2, y = b.y + b.height / 2; const top = document.elementFromPoint(x, y); "
            "return {x, y, isFree: e.contains(top)}; })()"
        )
        assert spot, f"there is no {selector}"
        assert spot["isFree"], f"{selector} is covered"
        place = {"x": spot["x"], "y": spot["y"], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=spot["x"], y=spot["y"])
        self.call("Input.dispatchMouseEvent", type="mousePressed", **place)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **place)

    def type(self, text: str) -> None:
        """Writes where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """One key, pressed and released."""
        code, text = KEYS[key]
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        about["modifiers"] = SHIFT if shift else 0
        down = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **about, **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def focused(self) -> str:
        """The name of what has the focus: its label, or its words."""
        return self.run(
            "(() => { const e = document.activeElement; return e.getAttribute('aria-label') || "
            "e.labels?.[0]?.innerText || e.innerText || e.tagName; })()"
        )

    def answer(self, path: str, *, when: Callable[[], None], status: int, body: Any, **headers: str) -> None:
        """Answers the request that when() causes in place of the server."""
        self.call("Fetch.enable", patterns=[{"urlPattern": f"*{path}*"}])
        try:
            num_before = len(self._paused())
            when()
            paused = self.browser.wait(lambda: self._paused()[num_before:], f"a request for {path}")[0]
            found = [{"name": name.replace("_", "-"), "value": value} for name, value in headers.items()]
            data = base64.b64encode(json.dumps(body).encode()).decode()
            self.call(
                "Fetch.fulfillRequest", requestId=paused["requestId"], responseCode=status, responseHeaders=found,
                body=data,
            )  # fmt: skip
        finally:
            self.call("Fetch.disable")

    def _paused(self) -> list[dict[str, Any]]:
        found = self.browser.events(self.session)
        return [event["params"] for event in found if event["method"] == "Fetch.requestPaused"]

    def offline(self, is_offline: bool) -> None:
        """Cuts the network of the page, or mends it."""
        self.call(
            "Network.emulateNetworkConditions", offline=is_offline, latency=0, downloadThroughput=-1,
            uploadThroughput=-1,
        )  # fmt: skip

    def sent(self, path: str) -> list[dict[str, Any]]:
        """The JSON bodies of what the page posted to a path."""
        found = []
        for event in self.browser.events(self.session):
            if event["method"] == "Network.requestWillBeSent":
                request = event["params"]["request"]
                if request["method"] == "POST" and request["url"].endswith(path):
                    found.append(json.loads(request["postData"]))
        return found

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and what the policy of the page refused."""
        found = []
        for event in self.browser.events(self.session):
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"])[:500])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(params["args"])[:500])
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def requests(self) -> Iterator[str]:
        """The address of everything the page asked for."""
        for event in self.browser.events(self.session):
            if event["method"] == "Network.requestWillBeSent":
                yield event["params"]["request"]["url"]

    def picture(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
