#!/usr/bin/env python3
"""Checks the built documentation in Chromium, without a window: `tests/platforms/site.py SITE`.

Pages fit windows of 1280 and 390 pixels, in light and dark mode, their header has one line, text is told from its
background, there is a footer, and the search finds what people look for.
"""

import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "helpers"))
import browser

PAGES = (
    "index", "get-started", "how-to/quantized-models", "how-to/from-torch", "reference/json",
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
FOUND = """new Promise((done) => {
    const wait = () => {
        const links = [...document.querySelectorAll("#search-results .search li a")].map((a) => a.href);
        const summary = document.querySelector(".search-summary");
        summary && /finished|found|match/i.test(summary.innerText) ? done(links) : setTimeout(wait, 50);
    };
    wait();
})"""


def check(tab, site):
    """Yield what is wrong."""
    for page in PAGES:
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                tab.open(site / f"{page}.html", width, 900, scheme)
                where = f"{page}, {width} pixels, {scheme}"
                if tab.run("document.documentElement.scrollWidth") > width:
                    yield f"{where}: wider than the window"
                if tab.run("document.querySelector('.bd-header').offsetHeight") > 90:
                    yield f"{where}: the header takes more than a line"
                if tab.run(CONTRAST) < 4.5:
                    yield f"{where}: text is hardly told from its background"
                if not tab.run("document.querySelector('footer a') !== null"):
                    yield f"{where}: no footer"
    for words, page in SEARCHES.items():
        tab.open(site / "search.html", 1280, 900, query=words)
        links = tab.run(FOUND)
        if not any(f"{page}.html" in link for link in links[:10]):
            yield f"search for {words!r} finds {links[:10]}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as profile:
        tab = browser.Browser(browser.find(), profile)
        wrong = list(check(tab, Path(sys.argv[1]).resolve()))
        tab.close()
    sys.exit("\n".join(wrong) or 0)
