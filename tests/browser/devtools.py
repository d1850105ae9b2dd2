"""Debian's Chromium with real clicks and keys, over its DevTools pipe: no driver, no port."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
_KEYS = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
    "Tab": 9,
    "Enter": 13,
}
#: Of what a selector finds: how light a colour is, from 0 to 1; null where it is see-through.
_LUMINANCES = """((selector, property) => [...document.querySelectorAll(selector)].map(e => {
  const [red, green, blue, alpha = 1] = getComputedStyle(e)[property].match(/[\\d.]+/g).map(Number);
  const linear = c => c <= 0.03928 * 255 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  return alpha < 1 ? null : 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
}))"""
#: What would scroll, or is cut, in a box that is too narrow; nobody scrolls paper.
_CUT = """[...document.querySelectorAll('body *')].filter(e => {
  const style = getComputedStyle(e);
  return e.clientWidth > 1 && e.scrollWidth > e.clientWidth + 1 && !e.closest('svg, select')
    && (/auto|scroll|hidden|clip/.test(style.overflowX)
      || e.matches('pre, .tokens, .card, #told, .bars .name, .plate, .wide'));
}).map(e => `${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`)"""


class Page:
    """One tab: what it asks for and complains of is kept in ``requests`` and ``complaints``."""

    def __init__(self, process, to_browser, from_browser):
        self._process, self._to, self._from = process, to_browser, from_browser
        self._buffer, self._number, self._session = b"", 0, None
        self.requests, self.complaints, self._loaded = [], [], False

    def call(self, method, **params):
        """A command of the DevTools protocol, and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _read(self, timeout=180.0):
        end = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            self._buffer += os.read(self._from, 1 << 20)
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(params["args"])
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def open(self, file, *, width=1200, height=900, dark=False, phone=False):
        """Shows a file, as wide as asked for."""
        if self._session is None:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self._loaded = False
        self.call("Page.navigate", url=Path(file).absolute().as_uri())
        while not self._loaded:
            self._read()

    def js(self, expression):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self, selector):
        """What an element says."""
        return self.js(f"document.querySelector({json.dumps(selector)}).textContent")

    def press(self, *keys):
        """Real keys, one after the other, to what has the focus."""
        for key in keys:
            code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
            self.call("Input.dispatchKeyEvent", type="rawKeyDown", **code)
            self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def _point(self, selector, across, down):
        box = self.js(
            f"(e => {{ e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            " const b = e.getClientRects()[0]; return [b.x, b.y, b.width, b.height]; })"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        return {"x": box[0] + across * box[2], "y": box[1] + down * box[3]}

    def hover(self, selector, across=0.5, down=0.5):
        """Moves the mouse over an element."""
        point = self._point(selector, across, down)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **point)

    def click(self, selector, across=0.5, down=0.5):
        """A real click on an element, at a share of its width and height."""
        point = self._point(selector, across, down)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            more = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **point, **more)

    def choose(self, selector, index):
        """Takes an entry of a select, as its keyboard would."""
        chosen = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{chosen}.value = {index}; {chosen}.dispatchEvent(new Event('change'))")

    def overflow(self):
        """By how many pixels the page is wider than its window."""
        return self.js(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def luminances(self, selector, colour):
        """How light a colour of what a selector finds is: ``backgroundColor``, ``fill``."""
        return self.js(f"{_LUMINANCES}({json.dumps(selector)}, {json.dumps(colour)})")

    def cut_on_paper(self, width):
        """What does not fit its box on a sheet of this width, in CSS pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", media="print", features=[])
        return self.js(_CUT)

    def photograph(self, file, *, whole=True):
        """Writes a PNG of the page, or of what is in sight of it."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(file).write_bytes(base64.b64decode(shot["data"]))

    def print(self, file):
        """Writes the page as PDF."""
        printed = self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        Path(file).write_bytes(base64.b64decode(printed["data"]))


@contextlib.contextmanager
def browser(folder):
    """A ``Page`` of a Chromium of its own, which ends with the block."""
    theirs_in, to_browser = os.pipe()
    from_browser, theirs_out = os.pipe()
    # Chromium reads commands from file descriptor 3 and answers on 4.
    script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    arguments += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", CHROMIUM, *arguments],
        pass_fds=(theirs_in, theirs_out),
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    page = Page(process, to_browser, from_browser)
    try:
        yield page
    finally:
        os.close(to_browser)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser)
