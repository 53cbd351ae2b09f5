"""A real browser: Chromium without a window, driven by its DevTools protocol through a pair of pipes."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
from urllib.parse import quote

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads commands from descriptor 3 and writes to 4.
LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]
os.dup2(pipes[0], 3)
os.dup2(pipes[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 30  # seconds


def find():
    """The path of a browser, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One tab of a browser."""

    def __init__(self, program, profile):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(commands), str(answers), program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
            # without the sanitizer of our own process
            env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
        )
        os.close(commands)
        os.close(answers)
        self._number, self._session, self._received = 0, {}, b""
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        """End the browser."""
        self.call("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method, **params):
        """Give a command, wait for its answer."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        while b"\0" not in self._received:
            assert select.select([self._answers], [], [], PATIENCE)[0], "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._received += part
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)

    def open(self, path, width=1000, height=700, scheme="light", touch=False, fragment="", query=""):
        """Load a file, or an address, in a window of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        address = path if isinstance(path, str) else path.as_uri()
        address += f"?q={quote(query)}" * bool(query) + f"#{fragment}" * bool(fragment)
        for url in ("about:blank", address) if fragment else (address,):  # a change of the fragment alone loads nothing
            self.events = []
            self.call("Page.navigate", url=url)
            while not self.seen("Page.loadEventFired"):
                self.events.append(self._read())
        self.settle()

    def enable_in_others(self, domain):
        """Enable events of the page's workers, once there is one; they are attached to."""
        while not self.seen("Target.attachedToTarget"):
            self.events.append(self._read())
        own = self._session
        for event in self.seen("Target.attachedToTarget"):
            self._session = {"sessionId": event["params"]["sessionId"]}
            self.call(f"{domain}.enable")
        self._session = own

    def settle(self):
        """Wait until the page has read its data, and drawn what is in the window."""
        frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))"
        self.run(f"typeof ready == 'undefined' || !ready.then ? 0 : ready.then(() => {frames})")

    def seen(self, *methods):
        """Events of these kinds since a file was opened."""
        return [event for event in self.events if event["method"] in methods]

    def run(self, script):
        """The value of an expression of JavaScript."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def point(self, x, y):
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, x, y):
        """Touch the screen with a finger, shortly."""
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key):
        """Press a key, with Shift for a capital."""
        code, shift = {"Tab": 9}.get(key, 0), 8 * (len(key) == 1 and key.isupper())
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=shift)

    def screenshot(self, path):
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


CARD = """document.getElementById("card").hidden ? null : document.getElementById("card").innerText"""


def middle(browser, index):
    """Where a token is."""
    return browser.run(
        f"""(() => {{
            const box = document.querySelectorAll("#text i")[{index}].getClientRects()[0];
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
    )


def assert_quiet(browser, path):
    """Check that the browser loaded nothing else and reported nothing."""
    assert [event["params"]["request"]["url"] for event in browser.seen("Network.requestWillBeSent")] == [path.as_uri()]
    assert not browser.seen(
        "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening"
    )
