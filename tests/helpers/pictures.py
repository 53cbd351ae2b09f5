"""Makes the pictures of README and of the gallery: python tests/helpers/pictures.py.

The examples of gallery.md run in an empty folder. A browser shows the pages that they write, and their plots are made
smaller. tests/test_pages.py compares the plots with what the examples draw. What a browser shows depends on its version
and its fonts: of those pictures, tests/output/test_gallery.py compares the sizes alone.
"""

import contextlib
import tempfile
from pathlib import Path

import browser as browsers
import numpy as np
import pages
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from places import ROOT

PICTURE = ROOT / ".github" / "page.png"  # that of README, which the gallery shows, too
GALLERY = pages.DOCS / "gallery"
PAGE = pages.DOCS / "gallery.md"
SCREENSHOTS = {
    "page.html": PICTURE,
    "comparison.html": GALLERY / "comparison.png",
    "table.html": GALLERY / "table.png",
}
SIZES = {"page.html": (760, 610), "comparison.html": (760, 890), "table.html": (900, 190)}  # with room for the card
TOKENS = {"page.html": 8, "comparison.html": 29}  # costly ones, at which the mouse points
PLOTS = ("losses.png", "divergences.png")
SKETCHES = pages.DOCS / "how-to" / "sketches.md"  # which draws a plot of the same name
WIDTH, COLORS = 1100, 128  # of a plot, so that it takes less than 100 kB


def main():
    """Run the examples, and write all pictures."""
    GALLERY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.chdir(folder):
        pages.prepare(Path(folder))
        pages.run(PAGE)
        for name in PLOTS:
            save(smaller(name), GALLERY / name)
        pages.run(SKETCHES)
        save(smaller("sketches.png"), SKETCHES.with_suffix(".png"))
        tab = browsers.Browser(browsers.find(), folder)
        for name, picture in SCREENSHOTS.items():
            show(tab, Path(folder, name))
            tab.screenshot(picture)
            if picture != PICTURE:
                save(few_colors(opened(picture)), picture)
        tab.close()


def opened(path):
    """A picture, read whole."""
    with Image.open(path) as image:
        image.load()
        return image


def smaller(path):
    """A plot with fewer pixels and colors, and the name of what drew it."""
    image = opened(path)
    small = few_colors(image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS))
    small.info = {"Software": image.info["Software"]}
    return small


def shows(picture, plot):
    """Whether a picture is that of a plot: pixel by pixel if the same matplotlib drew both, else by its size."""
    shown, drawn = opened(picture), smaller(plot)
    if shown.info.get("Software") != drawn.info["Software"]:
        return shown.size == drawn.size
    colors = [np.asarray(image.convert("RGB"), np.int16) for image in (shown, drawn)]
    return shown.size == drawn.size and (abs(colors[0] - colors[1]).max(-1) > 64).mean() < 0.001


def few_colors(image):
    """An image with a palette."""
    return image.convert("RGB").quantize(COLORS)


def save(image, path):
    """Save an image as PNG, with the name of what drew it."""
    text = PngInfo()
    for key, value in image.info.items():
        if isinstance(value, str):
            text.add_text(key, value)
    image.save(path, optimize=True, pnginfo=text)


def show(tab, path):
    """Open a page in a window that shows what is worth seeing."""
    if path.name == "table.html":  # as in a notebook
        style = "<!doctype html><meta charset='utf-8'><body style='font: 13px sans-serif'>"
        path.write_text(style + path.read_text("utf-8"), "utf-8")
    tab.open(path, *SIZES[path.name])
    if path.name in TOKENS:
        tab.point(*browsers.middle(tab, TOKENS[path.name]))


if __name__ == "__main__":
    main()
