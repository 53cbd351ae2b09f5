"""Settings of Sphinx: `sphinx-build -W --keep-going .github/docs OUT` builds the site; so does `.ci/run docs`."""

import functools
import importlib
import inspect
import os
import re
from dataclasses import is_dataclass
from pathlib import Path

from sphinx.util import logging

import tokenloss

project = "tokenloss"
author = "the tokenloss developers"
copyright = author  # noqa: A001 -- the name that Sphinx reads
version = release = tokenloss.__version__
# the address of the repository, to which links lead that leave this folder
repository = os.environ.get("REPOSITORY", "https://example.com/owner/tokenloss")

extensions = ["sphinx.ext.autosummary", "numpydoc", "myst_parser", "sphinx_copybutton", "sphinx_design"]
myst_enable_extensions = ["colon_fence"]
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor output
python_maximum_signature_line_length = 88  # then one parameter per line
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
html_sidebars = {name: [] for name in ("index", "get-started", "at-scale", "gallery", "changelog")}
html_theme_options = {
    "logo": {"text": f"tokenloss {version}"},
    "icon_links": [{"name": "Repository", "url": repository, "icon": "fa-solid fa-code-branch"}],
    "use_edit_page_button": True,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_nav_level": 2,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc", "edit-this-page"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_context = {
    "edit_page_url_template": "{{ repository }}/edit/main/.github/docs/{{ file_name }}",
    "edit_page_provider_name": "the repository",
    "repository": repository,
}


def members_of(name):
    """The sections of a class's page: their title, the directive of a member, and the names of public members."""
    module, _, name = name.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    own = [base for base in cls.__mro__ if base.__module__.startswith("tokenloss")]
    names = sorted({name for base in own for name in vars(base) if not name.startswith("_")})
    statics = {one: inspect.getattr_static(cls, one) for one in names}
    properties = [one for one, value in statics.items() if isinstance(value, property | functools.cached_property)]
    methods = [one for one, value in statics.items() if inspect.isroutine(value) and one not in properties]
    sections = ("Attributes", "autoproperty", properties), ("Methods", "automethod", methods)
    return [section for section in sections if section[2]]


autosummary_context = {"members_of": members_of}
suppress_warnings = ["config.cache"]  # a function is not cached


def check_members(app, error):
    """Warn of public properties and methods that the page of their class lacks."""
    for page in () if error else Path(app.outdir, "reference", "functions").glob("*.html"):
        module, _, name = page.stem.rpartition(".")
        thing, text = getattr(importlib.import_module(module), name), page.read_text("utf-8")
        for _, _, names in members_of(page.stem) if inspect.isclass(thing) else ():
            for member in names:
                if f'id="{page.stem}.{member}"' not in text:
                    logging.getLogger(__name__).warning("%s lacks %s", page.name, member)


def cards(app, name, source):
    """On the first page, make a card of each line of the list, which stays a list where the forge shows the page."""
    if name == root_doc:
        one = ":::{grid-item-card} \\1\n:link: \\2\n:link-type: doc\n\\3\n:::\n"
        lines = re.sub(r"(?m)^- \[([^]]+)\]\(([^)]+)\.md\)[:,]?((?: .*|\n  .*)+)\n", one, source[0])
        source[0] = re.sub(r"(?s)(:::\{grid-item-card\}.*:::\n)", r"::::{grid} 1 2 2 3\n:gutter: 3\n\n\1::::\n", lines)


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
    app.connect("source-read", cards)
    app.connect("build-finished", check_members)
