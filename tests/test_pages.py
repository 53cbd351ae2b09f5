"""The pages of the documentation: their examples run, and print what is shown."""

import re
import shutil

import pages
import pytest
import recorded_server

pytestmark = [
    pytest.mark.thread_unsafe(reason="changes the working directory"),
    pytest.mark.skipif(not pages.DOCS.exists(), reason="an sdist has no .github"),
    pytest.mark.skipif(not shutil.which("bash"), reason="commands of pages are those of a POSIX shell"),
]
PAGES = sorted(pages.DOCS.rglob("*.md"))
# packages that a page's examples need, beyond those of the extra `test`
NEEDS = {
    "how-to/clusters.md": ("torch", "transformers", "joblib", "distributed"),
    "explained/differences.md": ("scipy", "sklearn", "torch"),
    "reference/files.md": ("zarr", "safetensors"),
    "how-to/hidden-states.md": ("torch", "transformers"),
    "how-to/multiple-choice.md": ("torch", "transformers"),
    "how-to/packed-documents.md": ("torch", "transformers"),
    "how-to/padded-batch.md": ("torch", "transformers"),
}


def name_of(page):
    """The path of a page within the documentation."""
    return page.relative_to(pages.DOCS).as_posix()


@pytest.fixture
def servers(monkeypatch):
    """Servers at the addresses that pages name, which answer as real ones did."""
    with recorded_server.serving() as proxy:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", proxy)
        yield


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_of(page, tmp_path, monkeypatch, request):
    for module in NEEDS.get(name_of(page), ()):
        pytest.importorskip(module, reason="the package is not installed")
    if "http://localhost:" in page.read_text("utf-8"):
        request.getfixturevalue("servers")
    pages.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    pages.run(page)


def test_needs_name_pages():
    assert set(NEEDS) <= set(map(name_of, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_name_their_language(page):
    fences = re.findall(r"^`{3,}(.*)$", page.read_text("utf-8"), re.MULTILINE)[::2]
    known = {"python", "text", "console", "sh", "bash", "json", "yaml", "toml"}
    assert [fence for fence in fences if fence not in known and not fence.startswith("{")] == []


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
