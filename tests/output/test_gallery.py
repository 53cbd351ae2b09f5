"""The pictures of the gallery and of README: all are there, small, and of the size that a browser gives them.

What is drawn in them is compared in test_pages.py for plots, and not at all for pages: browsers and fonts differ.
"""

import re

import pages
import pytest
from browser import CARD
from places import ROOT

from tokenloss._command import cli

pytest.importorskip("PIL")
import pictures

pytestmark = pytest.mark.skipif(not pages.DOCS.exists(), reason="an sdist has no .github")


def test_gallery_shows_every_picture_once():
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", pictures.PAGE.read_text("utf-8"))
    there = [*pictures.GALLERY.iterdir(), pictures.PICTURE]
    assert sorted((pictures.PAGE.parent / path).resolve() for path in shown) == sorted(there)
    for path in there:
        assert 5_000 < path.stat().st_size < 100_000, path.name


@pytest.mark.parametrize("name", pictures.SCREENSHOTS)
def test_pictures_of_pages_have_the_size_of_their_window(name):
    assert pictures.opened(pictures.SCREENSHOTS[name]).size == pictures.SIZES[name]


@pytest.mark.slow
def test_picture_of_the_page_shows_a_card(browser, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "page.html"
    assert cli.main(["score", "tests/data/whisper-tiny-en.npz", "--html", str(path)]) == 0
    pictures.show(browser, path)
    assert browser.run(CARD).startswith("␣the\n#262\n")
    browser.screenshot(tmp_path / "page.png")
    assert pictures.opened(tmp_path / "page.png").size == pictures.opened(pictures.PICTURE).size
