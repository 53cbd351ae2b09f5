"""Makes README's picture of the page that `tokenloss score --html` writes: python tests/helpers/picture.py."""

import contextlib
import tempfile
from pathlib import Path

import browser as browsers
from places import ROOT

from tokenloss._command import cli

PICTURE = ROOT / ".github" / "page.png"
SAMPLE = "whisper-tiny-en.npz"
WIDTH, HEIGHT = 760, 610  # with room for the card below the text
TOKEN = 8  # " the", the costliest: its card lists the alternatives


def main():
    """Write the page of the sample, point at a token, and save what a browser shows."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT / "tests" / "data"):
        page = Path(folder, "page.html")
        cli.main(["score", SAMPLE, "--html", str(page)])  # the page is headed by the name as it is given
        tab = browsers.Browser(browsers.find(), folder)
        tab.open(page, WIDTH, HEIGHT)
        box = f"""document.querySelectorAll("#text i")[{TOKEN}].getBoundingClientRect()"""
        tab.point(*tab.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})"))
        tab.screenshot(PICTURE)
        tab.close()


if __name__ == "__main__":
    main()
