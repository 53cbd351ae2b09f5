"""The pages of the documentation: their examples run, and print what is shown."""

import contextlib
import re
import sys
from pathlib import Path

import pages
import pytest
import recorded_server
from places import ROOT

pytestmark = [
    pytest.mark.thread_unsafe(reason="changes the working directory"),
    pytest.mark.skipif(sys.platform == "win32", reason="commands of pages are those of a POSIX shell"),
]
PAGES = [ROOT / "README.md", *sorted(pages.DOCS.rglob("*.md"))]  # an sdist has README alone
# packages that a page's examples need, beyond those of the extra `test`
NEEDS = {
    "gallery.md": ("matplotlib", "torch", "transformers"),
    "README.md": ("sklearn", "torch", "transformers"),
    "how-to/engines.md": ("torch", "transformers", "onnx", "onnxruntime"),
    "how-to/classifiers-compared.md": ("sklearn",),
    "how-to/scikit-learn.md": ("pandas", "sklearn"),
    "how-to/segmentation.md": ("torch",),
    "how-to/shards.md": ("torch", "transformers"),
    "how-to/windows.md": ("torch", "transformers"),
    "how-to/tables.md": ("torch", "transformers", "pandas", "polars", "pyarrow"),
    "how-to/clusters.md": ("torch", "transformers", "joblib", "distributed"),
    "explained/differences.md": ("scipy", "sklearn", "torch"),
    "reference/files.md": ("zarr", "safetensors"),
    "how-to/distillation.md": ("torch", "transformers"),
    "how-to/draft-models.md": ("torch", "transformers"),
    "how-to/gates.md": ("torch", "transformers"),
    "how-to/hidden-states.md": ("torch", "transformers"),
    "how-to/multiple-choice.md": ("torch", "transformers"),
    "how-to/packed-documents.md": ("torch", "transformers"),
    "how-to/padded-batch.md": ("torch", "transformers"),
    "how-to/quantised-models.md": ("matplotlib", "torch", "transformers"),
    "how-to/two-candidates.md": ("torch", "transformers"),
}
OF_PROCESSES = ("reference/environment.md", "reference/exit-statuses.md")  # whose examples start many


def name_of(page):
    """The path of a page within the documentation, or README.md."""
    return page.relative_to(pages.DOCS if pages.DOCS in page.parents else ROOT).as_posix()


def slow_or_not(page):
    """A page is slow if its examples need other libraries, which take seconds to import, or start many processes."""
    return pytest.param(page, marks=[pytest.mark.slow] * (name_of(page) in {*NEEDS, *OF_PROCESSES}), id=name_of(page))


@pytest.mark.parametrize("page", [*map(slow_or_not, PAGES)])
def test_examples_of(page, tmp_path, monkeypatch):
    for module in NEEDS.get(name_of(page), ()):
        pytest.importorskip(module, reason="the package is not installed")
    pages.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torch's threads wait for each other, on a busy machine for long
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    asks = "http://localhost:" in page.read_text("utf-8")
    with recorded_server.serving() if asks else contextlib.nullcontext():
        pages.run(page)
    for shown in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", page.read_text("utf-8")):
        picture, drawn = page.parent / shown, tmp_path / Path(shown).name
        if drawn.exists():
            import pictures  # needs Pillow, as matplotlib does

            assert pictures.shows(picture, drawn), f"{shown}: python tests/helpers/pictures.py makes it anew"


def test_needs_name_pages():
    assert {*NEEDS, *OF_PROCESSES} <= set(map(name_of, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_name_their_language(page):
    fences = re.findall(r"^`{3,}(.*)$", page.read_text("utf-8"), re.MULTILINE)[::2]
    known = {"python", "text", "console", "sh", "bash", "json", "yaml", "toml"}
    assert [fence for fence in fences if fence not in known and not fence.startswith("{")] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_of_the_repository_lead_somewhere(page):
    """Those that leave the site, which Sphinx takes for links to another one."""
    for link in re.findall(r"\]\(([^):#]+)", page.read_text("utf-8")):
        target = (page.parent / link).resolve()
        assert target.is_relative_to(pages.DOCS) or target.exists(), link


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ("loss 0.3290", "loss 0.3291", True),
        ("loss 0.3290", "loss 0.3294", False),
        ("tokens 15", "tokens 16", False),
        ("loss 1.2e-05", "loss 1.3e-05", True),
        ("loss", "less", False),
        ("a ... c", "a b\nb c", True),
        ("a ... c", "a b", False),
        ("", "printed and not shown", False),
        ("loaded", "\rLoading: 0%\rLoading: 100%\nloaded", True),
    ],
)
def test_outputs_agree(shown, printed, agree):
    assert pages.agrees(shown, printed) is agree
