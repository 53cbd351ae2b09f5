"""Settings of Sphinx: `sphinx-build -W --keep-going .github/docs OUT` builds the site; so does `.ci/run docs`."""

import functools
import importlib
import inspect
import json
import os
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path

from bs4 import BeautifulSoup
from sphinx.util import logging

import tokenloss

sys.path.append(str(Path(__file__).parents[2] / "tests" / "helpers"))
import reference_pages

project = "tokenloss"
author = "the tokenloss developers"
copyright = author  # noqa: A001 -- the name that Sphinx reads
version = release = tokenloss.__version__
# the address of the repository, to which links lead that leave this folder
repository = os.environ.get("REPOSITORY", "https://example.com/owner/tokenloss")
# what the page try.md runs: the last Pyodide with Python 3.13, by default from its CDN, the package's wheel for it,
# without which the page has no form, and a sample
pyodide_version = "0.29.5"
pyodide = os.environ.get("PYODIDE", f"https://cdn.jsdelivr.net/pyodide/v{pyodide_version}/full/")
wheel = os.environ.get("WHEEL")
sample = Path(__file__).parents[2] / "tests" / "data" / "vllm.json"

extensions = ["sphinx.ext.autosummary", "numpydoc", "myst_parser", "sphinx_copybutton", "sphinx_design"]
myst_enable_extensions = ["colon_fence"]
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor output
python_maximum_signature_line_length = 88  # then one parameter per line
exclude_patterns = ["README.md"]
root_doc = "index"
templates_path = ["templates"]
myst_heading_anchors = 4
autosummary_generate = True
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

migration_guides = [f"how-to/{path.stem}" for path in Path(__file__).parent.glob("how-to/from-*.md")]
html_theme = "pydata_sphinx_theme"
html_static_path = ["static", *((str(sample), wheel) if wheel else ())]
html_css_files = ["site.css"]
html_title = "tokenloss"
html_show_sourcelink = False
html_sidebars = {name: [] for name in ("index", "get-started", "try", "at-scale", "gallery", "changelog")}
html_theme_options = {
    "logo": {"text": f"tokenloss {version}"},
    "icon_links": [{"name": "Repository", "url": repository, "icon": "fa-solid fa-code-branch"}],
    "use_edit_page_button": True,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_nav_level": 2,
    "header_links_before_dropdown": 6,
    # pairs of code blocks take the place of the table of contents
    "secondary_sidebar_items": {"**": ["page-toc", "edit-this-page"], **{guide: [] for guide in migration_guides}},
    "footer_start": ["copyright"],
    "footer_end": ["links"],
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


moved = {"how-to/quantised-models": "quantized-models"}  # pages by their earlier names


def redirect(app, error):
    """Write redirects from the old names of pages to the new ones."""
    for old, new in () if error or app.builder.format != "html" else moved.items():
        head = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={new}.html">'
        Path(app.outdir, f"{old}.html").write_text(
            f'{head}<title>Moved</title><a href="{new}.html">Moved</a>\n', "utf-8"
        )


def write_schema(app, error):
    """Write the JSON Schema of results next to the page it is generated from."""
    if not error and app.builder.format == "html":
        text = json.dumps(reference_pages.json_schema(), indent=2, ensure_ascii=False)
        Path(app.outdir, "reference", "json-schema.json").write_text(f"{text}\n", "utf-8")


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


def pairs(app, name, source):
    """On pages that lead from another tool to this one, put two blocks of code that follow each other side by side."""
    if name in migration_guides:
        block = r"(```python\n# [^`]+```)"
        columns = "".join(f":::{{grid-item}}\n\\{number}\n:::\n" for number in (1, 2))
        grid = f"::::{{grid}} 1 1 2 2\n:gutter: 2\n\n{columns}::::"
        source[0] = re.sub(rf"{block}\n\n{block}", grid, source[0])


def captions_of(app, page):
    """The headings of a page that lists others, each with the number of names listed before it."""
    parts = re.split(r"(?m)^## (.+)$", Path(app.srcdir, f"{page}.md").read_text("utf-8"))
    counts = [len(re.findall(r"(?m)^   tokenloss\.\S+$|^- \[.+\]\(\S+\.md\)", part)) for part in parts[::2]]
    return {sum(counts[: i + 1]): heading for i, heading in enumerate(parts[1::2]) if counts[i + 1]}


def group_sidebar(app, name, template, context, doctree):
    """Show the headings of a page that lists others between their links in the sidebar."""
    make = context.get("generate_toctree_html")
    page = {"how-to": "how-to/index", "reference": "reference/api"}.get(name.partition("/")[0])
    if make is None or page is None:
        return

    def grouped(kind, **options):
        html = make(kind, **options)
        if kind != "sidebar":
            return html
        soup = BeautifulSoup(str(html), "html.parser")
        level = 1 if page.endswith("index") else 2
        links = soup.select(f"li.toctree-l{level}")
        for place, heading in captions_of(app, page).items():
            caption = soup.new_tag("li", attrs={"class": "sidebar-caption"})
            caption.string = heading
            links[place].insert_before(caption)
        return soup

    context["generate_toctree_html"] = grouped


def load_form(app, name, template, context, doctree):
    """On the page that runs the package in the browser, load the form's script, with what it runs."""
    if name == "try" and wheel:
        data = {"pyodide": pyodide, "version": pyodide_version, "wheel": Path(wheel).name, "sample": sample.name}
        app.add_js_file("try.js", type="module", **{f"data-{key}": value for key, value in data.items()})


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
    app.connect("source-read", pairs)
    app.connect("html-page-context", group_sidebar, priority=900)
    app.connect("html-page-context", load_form)
    app.connect("build-finished", check_members)
    app.connect("build-finished", redirect)
    app.connect("build-finished", write_schema)
