"""Settings of Sphinx: `sphinx-build -W --keep-going .github/docs OUT` builds the site; so does `.ci/run docs`."""

import os
import re
from dataclasses import is_dataclass

import tokenloss

project = "tokenloss"
author = "the tokenloss developers"
copyright = author  # noqa: A001 -- the name that Sphinx reads
version = release = tokenloss.__version__
# the address of the repository, to which links lead that leave this folder
repository = os.environ.get("REPOSITORY", "https://example.com/owner/tokenloss")

extensions = ["sphinx.ext.autosummary", "numpydoc", "myst_parser"]
exclude_patterns = ["README.md"]
root_doc = "index"
templates_path = ["templates"]
myst_heading_anchors = 4
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = "tokenloss"
html_show_sourcelink = False
html_show_copyright = False
html_sidebars = {name: [] for name in ("index", "get-started", "at-scale", "gallery", "changelog")}
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_nav_level": 2,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}


def link_to_repository(app, name, source):
    """Make links that leave this folder lead to the repository, as they do where the forge shows the page."""
    depth = name.count("/") + 2  # folders between the page and the root of the repository
    out = "../" * depth
    source[0] = re.sub(
        rf"(?<!!)(\[[^]]+\])\({re.escape(out)}([^.)][^)]*)\)", rf"\1({repository}/blob/main/\2)", source[0]
    )


def without_signature(app, what, name, thing, options, signature, annotation):
    """Leave out how results are made: the functions of the package make them."""
    return ("", None) if name.startswith("tokenloss.results.") and is_dataclass(thing) else None


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", without_signature)
    app.connect("source-read", link_to_repository)
