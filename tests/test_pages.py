"""The pages of the documentation: their examples run, and print what is shown."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import needs
import pages
import pytest
import recorded_server
from places import ROOT

pytestmark = [
    pytest.mark.thread_unsafe(reason="changes the working directory"),
    pytest.mark.skipif(sys.platform == "win32", reason="commands of pages are those of a POSIX shell"),
]
PAGES = [ROOT / "README.md", *sorted(pages.DOCS.rglob("*.md"))]  # an sdist has README alone
OF_PROCESSES = ("reference/environment.md", "reference/exit-statuses.md")  # whose examples start many


def name_of(page):
    """The path of a page within the documentation, or README.md."""
    return page.relative_to(pages.DOCS if pages.DOCS in page.parents else ROOT).as_posix()


def case_of(page):
    """A page as a parameter: skipped if a package is missing, slow if it starts processes or needs more than `test`."""
    needed = needs.of_page(page)
    marks = [pytest.mark.skip(f"could not import {name!r}") for name in needs.missing(needed)]
    if not marks and (needed - needs.of_extra("test") or name_of(page) in OF_PROCESSES):
        marks = [pytest.mark.slow]
    return pytest.param(page, marks=marks, id=name_of(page))


@pytest.mark.parametrize("page", [*map(case_of, PAGES)])
def test_examples_of(page, tmp_path, monkeypatch):
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


@pytest.mark.skipif(not pages.DOCS.exists(), reason="an sdist has no .github")
def test_pages_of_processes_exist():
    assert {*OF_PROCESSES} <= set(map(name_of, PAGES))


@pytest.mark.parametrize(
    ("language", "example", "needed"),
    [
        ("python", "import numpy as np, sklearn.metrics", {"numpy", "sklearn"}),
        ("python", "def later():\n    from torch.nn import functional", {"torch"}),
        ("python", "import json, tokenloss\nfrom tokenloss import plots", set()),
        ("python", "import vllm", {"torch", "transformers"}),  # a stand-in, which runs a model of transformers
        ("text", "import torch", set()),
        ("sh", "tokenloss score tests/data/whisper-tiny-en.npz --top 0", set()),
        ("sh", "python benchmarks/examples/store_logits.py MODEL \\\n  TEXTS OUT", {"numpy", "torch", "transformers"}),
        ("console", "$ cat base.txt | python benchmarks/examples/ask_server.py URL; ls\nfile", set()),
        ("console", "$ python -c 'import sklearn'", {"sklearn"}),
        ("console", "$ python -m timeit && python -m onnxruntime.tools.check", {"onnxruntime"}),
        ("console", "$ optimum-cli export onnx --model x onnx/", {"numpy", "onnx", "safetensors"}),
    ],
)
def test_page_needs_what_its_examples_and_the_programs_they_call_import(language, example, needed, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n```{language}\n{example}\n```\n", "utf-8")
    assert needs.of_page(page) == needed


def test_page_that_calls_a_program_which_is_not_there_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\npython benchmarks/examples/renamed.py\n```\n", "utf-8")
    with pytest.raises(FileNotFoundError):
        needs.of_page(page)


def test_programs_that_begin_the_parts_of_a_command():
    command = "A=1 torchrun 'x y' | dask < z && if lm_eval (v); then w 2> f $(cat g) --all; fi # end"
    assert needs.programs_of(command) == {"torchrun", "dask", "if", "lm_eval", "v", "then", "w", "cat", "fi"}


def test_pages_call_no_programs_of_packages():
    """Which packages those belong to could not be found out where they are not installed; shims stand in for them."""
    blocks = [block for page in PAGES for block in pages.blocks_of(page) if block.language in ("console", "sh")]
    programs = set().union(*(needs.programs_of(command) for block in blocks for command, _ in pages.commands_of(block)))
    unknown = programs - {"tokenloss", "python"} - {path.name for path in pages.SHIMS.iterdir()}
    known = subprocess.run(["bash", "-c", 'type "$@"', "bash", *unknown], env={"PATH": os.defpath}, check=False)
    assert known.returncode == 0, unknown


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
