#!/usr/bin/env python3
"""Checks the built documentation in Chromium, without a window: `tests/platforms/site.py SITE`.

Pages fit windows of 1280 and 390 pixels, in light and dark mode, and commands fit their boxes; the header has one line,
text stands out from its background, there is a footer, and the search finds what people look for.

If SITE has a folder `pyodide`, as `.ci/run docs` puts it there, the page that runs the package in the browser prints
what the command prints here, shows the page that it writes, and asks nobody but the server of the site.
"""

import base64
import contextlib
import functools
import http.server
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "helpers"))
import browser
import html_pages

PAGES = (
    "index", "get-started", "try", "how-to/quantized-models", "how-to/servers", "how-to/from-torch", "reference/json",
    "reference/functions/tokenloss.LossMeter",
)  # fmt: skip
SEARCHES = {
    "perplexity stderr": "explained/standard-errors",
    "ECE": "how-to/calibration",
    "next_token": "reference/functions/tokenloss.next_token",
}
CONTRAST = """(() => {
    const light = (color) => {
        const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const [a, b] = [getComputedStyle(document.querySelector("article p")).color,
        getComputedStyle(document.body).backgroundColor].map(light);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})()"""
SCROLLED = """[...document.querySelectorAll(".highlight-sh, .highlight-bash, .highlight-console")].filter((box) => {
    const texts = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), range = document.createRange();
    while (texts.nextNode())
        if (!texts.currentNode.parentElement.closest(".go") && texts.currentNode.data.trim()) {
            range.selectNodeContents(texts.currentNode);
            if ([...range.getClientRects()].some((part) => part.right > box.getBoundingClientRect().right)) return true;
        }
}).length"""
FOUND = """new Promise((done) => {
    const wait = () => {
        const links = [...document.querySelectorAll("#search-results .search li a")].map((a) => a.href);
        const summary = document.querySelector(".search-summary");
        summary && /finished|found|match/i.test(summary.innerText) ? done(links) : setTimeout(wait, 50);
    };
    wait();
})"""


def check(tab, address):
    """Yield what is wrong."""
    for page in PAGES:
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                tab.open(f"{address}/{page}.html", width, 900, scheme)
                where = f"{page}, {width} pixels, {scheme}"
                if tab.run("document.documentElement.scrollWidth") > width:
                    yield f"{where}: wider than the window"
                if tab.run("document.querySelector('.bd-header').offsetHeight") > 90:
                    yield f"{where}: the header takes more than a line"
                if tab.run(CONTRAST) < 4.5:
                    yield f"{where}: text hardly stands out from its background"
                if tab.run(SCROLLED):
                    yield f"{where}: commands are wider than their boxes"
                if not tab.run("document.querySelector('footer a') !== null"):
                    yield f"{where}: no footer"
    for words, page in SEARCHES.items():
        tab.open(f"{address}/search.html", 1280, 900, query=words)
        links = tab.run(FOUND)
        if not any(f"{page}.html" in link for link in links[:10]):
            yield f"search for {words!r} finds {links[:10]}"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers with the files of a folder, and writes no log."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(site):
    """The address of a server of the site."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def save_files(folder):
    """Save files that readers may drop; return the names of each run."""
    random = np.random.default_rng(50)
    logits, ids = random.normal(0, 3, (40, 300)).astype(np.float32), random.integers(0, 300, 40)
    np.savez(folder / "logits.npz", logits=logits, targets=ids)
    np.save(folder / "logits.npy", logits)
    np.save(folder / "the ids.npy", ids)
    (folder / "broken.npz").write_bytes((folder / "logits.npz").read_bytes()[:20_000])
    return ["logits.npz"], ["logits.npy", "the ids.npy"], ["broken.npz"]


DROP = """(() => {
    const files = new DataTransfer();
    for (const [name, letters] of Object.entries(%s))
        files.items.add(new File([Uint8Array.from(atob(letters), (letter) => letter.charCodeAt(0))], name));
    const options = { dataTransfer: files, bubbles: true, cancelable: true };
    document.querySelector("#try form").dispatchEvent(new DragEvent("drop", options));
})()"""
STATE = """(() => {
    const [status, pre, frame] = document.querySelectorAll("#try [role=status], #try pre, #try iframe");
    return [status.innerText, pre.textContent, frame.hidden, document.documentElement.scrollWidth];
})()"""

PAGE = "fetch(document.querySelector('#try iframe').src).then((page) => page.text())"


def ended(tab):
    """What is shown once the command has ended, or after two minutes: status, text, whether there is no page, width."""
    last = time.monotonic() + 120
    while not (state := tab.run(STATE))[0].startswith(("Done", "Exit", "It did", "This")) and time.monotonic() < last:
        time.sleep(0.1)
    return state


def check_in_browser(tab, site, address, folder):
    """Yield what is wrong with the page that runs the package in the browser."""
    tab.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)
    tab.open(f"{address}/try.html", 390, 900)
    tab.enable_in_others("Network")
    data = tab.run("({ ...document.querySelector('script[data-wheel]').dataset })")
    sample, version = data["sample"], data["version"]
    (folder / sample).write_bytes((site / "_static" / sample).read_bytes())
    tab.run("document.querySelector('#try [type=button]').click()")
    for names in [sample], *save_files(folder):
        if names != [sample]:
            content = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in reversed(names)}
            tab.run(DROP % json.dumps(content))
        status, text, has_no_page, width = ended(tab)
        here = subprocess.run(
            [sys.executable, "-m", "tokenloss", "score", *names, "--html", "page.html"],
            capture_output=True, encoding="utf-8", cwd=folder, check=False,
        )  # fmt: skip
        where = f"try, {names}"
        end = f"Exit status {here.returncode} " if here.returncode else "Done "
        if not status.startswith(end) or not status.endswith(f"Pyodide {version}."):
            yield f"{where}: {status}; here the status is {here.returncode}, and the site is for Pyodide {version}"
        if text != here.stdout + here.stderr:
            yield f"{where}: prints\n{text}\nand here\n{here.stdout}{here.stderr}"
        if has_no_page is (here.returncode == 0):
            yield f"{where}: the page is {'hidden' if has_no_page else 'shown'}"
        elif not has_no_page:
            shown, written = map(html_pages.Reader, (tab.run(PAGE), (folder / "page.html").read_text("utf-8")))
            if (shown.words, shown.data) != (written.words, written.data):
                yield f"{where}: the page differs from the one written here"
        if width > 390:
            yield f"{where}: wider than the window"
    requests = [event["params"]["request"]["url"] for event in tab.seen("Network.requestWillBeSent")]
    if not any(url.endswith(".whl") for url in requests):
        yield f"try: requests of the worker are not seen: {requests}"
    if others := [url for url in requests if not url.startswith((address, f"blob:{address}", "data:"))]:
        yield f"try: asks for {others}"


if __name__ == "__main__":
    site = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryDirectory() as folder:
        tab = browser.Browser(browser.find(), profile)
        with serving(site) as address:
            wrong = list(check(tab, address))
            if (site / "pyodide").exists():
                wrong += check_in_browser(tab, site, address, Path(folder))
        tab.close()
    sys.exit("\n".join(wrong) or 0)
