"""What compare prints and writes of one candidate and of several: tables, files of tokens, plots and pages."""

import dataclasses
import math
import re
import shlex
import sys

import numpy as np
import pytest
from candidates import Many
from html_pages import Reader

import tokenloss
from tokenloss import compare
from tokenloss._comparison.comparisons import Comparisons
from tokenloss._core.result import as_text
from tokenloss._evaluation import plan
from tokenloss._output import divergence_plot, page

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
MINUS = "\N{PLUS-MINUS SIGN}"


@pytest.fixture
def many(tmp_path):
    """Files of a base and of three candidates in two shards, the arrays in them, and the command's arguments."""
    return Many(tmp_path)


def cells(line):
    """Cells of a printed line."""
    return re.split("  +", line.strip())


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rich", [True, False])
def test_table_of_several_candidates(rich, many, command, monkeypatch):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    status, out, err = command(*many.argv(), "--size", "q8=8.5G", "--size", "q4=4900000000")
    assert (status, err) == (0, "")
    first, _, heads, *rows = out.splitlines()
    rows = rows[: rows.index("")]
    kept = many.targets >= 0
    factor = many.comparison("q8").interval_factor
    assert first == (
        f"3 models vs {many.path / 'base'}  {kept.sum()} tokens, errors clustered by 5 sequences, exact definitions; "
        f"logits; 95 % CI = value ± {factor:.3g} SE"
    )
    assert cells(heads) == ["model", "size", "PPL", MINUS, "mean KLD", MINUS, "99.9% KLD", "PPL ratio", MINUS,
                            "same top", MINUS, "RMS Δp"]  # fmt: skip
    assert [cells(row)[0] for row in rows] == ["base", "q8", "q4", "q2"]
    one = many.comparison("q8")
    assert cells(rows[0]) == ["base", f"{one.base_perplexity:.6g}", f"{one.base_perplexity.stderr:.3g}"]
    for row in rows[1:]:
        name = cells(row)[0]
        assert cells(row)[1:-10] == {"q8": ["8.5 GB"], "q4": ["4.9 GB"], "q2": []}[name]
        one = many.comparison(name)
        kl = one.kl[kept]
        groups = [(kl - kl.mean())[many.sequences[kept] == group].sum() for group in range(5)]
        stderr = math.sqrt(5 / 4 * np.square(groups).sum()) / kl.size
        change = one.delta_p[kept]
        expected = [
            f"{one.perplexity:.6g}", f"{one.perplexity.stderr:.3g}",
            f"{kl.mean():.6f}", f"{stderr:.6f}", f"{np.quantile(kl, 0.999):.3g}",
            f"{math.exp(one.nll[kept].mean() - one.base_nll[kept].mean()):.5f}", f"{one.perplexity_ratio.stderr:.5f}",
            f"{100 * one.is_same_top[kept].mean():.2f} %", f"{100 * one.same_top.stderr:.2f} %",
            f"{100 * math.sqrt(np.square(change).mean()):.2f} %",
        ]  # fmt: skip
        assert cells(row)[-10:] == expected
    assert [line for line in out.splitlines() if line != line.rstrip()] == []


def printed(comparisons, **about):
    """Rows of the tables of comparisons by name, each a list of its cells, without the signature."""
    named = {name: dataclasses.replace(one, _about={"name": name, **about}) for name, one in comparisons.items()}
    return [cells(line) for line in as_text(Comparisons(named)._shown()._replace(signature="")).splitlines()]


def of_kl(kl, **options):
    """A comparison of two classes with about these divergences."""
    logits = np.zeros((len(kl), 2))
    logits[:, 1] = [-math.inf if math.isinf(one) else one for one in kl]
    return compare(np.zeros_like(logits), logits, np.zeros(len(kl), int), **options)


def test_infinite_candidates_are_last_and_marked():
    kl = {"nan": [math.nan, 1.0], "inf": [1.0, math.inf, math.inf], "high": [3.0, 2.0], "low": [0.5, 1.0]}
    rows = printed({name: of_kl(one) for name, one in kl.items()})
    assert rows[2][-2:] == ["not finite", "KLD where finite"]
    rows = rows[: rows.index([""], 3)]
    assert [row[0] for row in rows[3:]] == ["low", "high", "inf", "nan"]
    finite = f"{0.5 * math.log((1 + math.e) ** 2 / (4 * math.e)):.6f}"
    assert [row.count("inf") for row in rows[3:]] == [0, 0, 3, 0]  # the mean, a quantile and a ratio
    assert rows[6].count("nan") > 2
    assert rows[5][-2:] == ["2", finite]
    assert rows[6][-2:] == ["1", finite]
    assert len(rows[3]) == len(rows[5]) - 1  # which has two more figures, and no error of an infinite one


@pytest.mark.parametrize(
    ("size", "text"),
    [(4.9e9, "4.9 GB"), (1e8, "0.1 GB"), (99_940_000, "99.9 MB"), (1e5, "0.1 MB"), (2148, "2.15 kB"), (3, "0.003 kB")],
)
def test_sizes_are_told_in_a_unit_that_fits(size, text):
    rows = printed({"q": of_kl([1.0, 2.0]), "r": of_kl([1.0, 2.0])}, size=size)
    assert rows[4][1] == text


def test_names_of_candidates_cannot_control_the_terminal():
    name = "\x1b[31mq\n4[bold]"
    rows = printed({name: of_kl([1.0, 2.0]), "q": of_kl([1.0, 2.0])}, size=0)
    assert rows[4][:2] == [r"\x1b[31mq\n4[bold]", "0 kB"]
    rows = printed({name: of_kl([1.0, 2.0])})
    assert rows[0][0] == r"\x1b[31mq\n4[bold] vs base"


def test_tables_without_what_there_is_not():
    one = of_kl([1.0, 2.0, 0.5])
    words = [row[0] for row in printed({"q": one})]
    for word in (
        "Mean    KLD where finite", "Infinite tokens", "Tokens that are nan", "By type of token",
        "Sequences with the highest divergence", "Probability of the classes that are left out",
    ):  # fmt: skip
        assert word not in words


def test_rows_of_what_is_not_finite():
    one = of_kl([1.0, math.nan, math.inf, math.inf, 1.0])
    rows = printed({"q": one})
    finite = 0.5 * math.log((1 + math.e) ** 2 / (4 * math.e))
    at = rows.index(["Infinite tokens", "2", "of 5"])
    assert rows[at - 2][:3] == ["Mean", "KLD", "nan"]
    assert rows[at - 1] == ["Mean", "KLD where finite", f"{finite:.6f}", f"{MINUS}", "0.000000"]
    assert rows[at + 1] == ["Tokens that are nan", "1", "of 5"]


def test_intervals_of_quantiles(many, command):
    out = command(*many.argv("q4"))[1]
    one = many.comparison("q4")
    rows = {cells(line)[0]: line for line in out.split("KL divergence statistics")[1].splitlines() if "KLD" in line}
    assert "interval" not in rows["Maximum KLD"] + rows["Minimum KLD"]
    low, high = one.kl_quantiles[0.5].interval
    assert re.split("  +", rows["Median"])[-1] == f"95 % interval {low:.6f} to {high:.6f}"
    assert rows["99.9%"].endswith(f"{one.kl_quantiles[0.999].interval[0]:.6f} to inf")


def test_probability_of_the_classes_that_are_left_out():
    rng = np.random.default_rng(3)
    base, logits = rng.normal(size=(9, 5)), rng.normal(size=(9, 4))
    one = compare(base, logits, np.zeros(9, int), classes=4)
    rows = printed({"q": one})
    mass = (np.exp(base)[:, 4] / np.exp(base).sum(-1)).mean()
    at = rows.index(["Probability of the classes that are left out"])
    assert rows[at + 1] == ["Mean of base", f"{100 * mass:.4g} %"]
    assert rows[at + 2] == ["Mean of Q", "0 %"]


def group_rows(out, title):
    """Rows of a printed table, by the cell in its first column."""
    lines = out.split(f"  {title}\n")[1].split("\n\n")[0].splitlines()[1:]
    return {cells(line)[0]: cells(line)[1:] for line in lines}


def expected_row(one, mask, stderrs):
    """Figures of a group of tokens, as they are printed."""
    n, kl, difference = mask.sum(), one.kl[mask], one.nll[mask] - one.base_nll[mask]
    numbers = [f"{n:,}", f"{kl.mean():.6f}", f"{difference.mean():+.5f}"]
    if stderrs:
        numbers = [numbers[0], numbers[1], f"{stderrs[0]:.6f}", numbers[2], f"{stderrs[1]:.5f}"]
    numbers += [f"{100 * one.delta_p[mask].mean():+.3f} %", f"{100 * one.is_same_top[mask].mean():.2f} %"]
    return [*numbers, *(stderrs[2:])]


def test_tables_of_groups(many, command):
    status, out, err = command(*many.argv("q4"))
    assert (status, err) == (0, "")
    one, kept = many.comparison("q4"), many.targets >= 0
    base = many.base.astype(np.float64)
    confidence = np.exp(base.max(-1)) / np.exp(base).sum(-1)
    rows = group_rows(out, "By the base's confidence")
    assert sum(int(row[0]) for row in rows.values()) == kept.sum()
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        mask = kept & (confidence >= low) & (confidence < low + 0.2)
        if mask.any():
            row = rows[f"{low:.1f} to {low + 0.2:.1f}"]
            assert row == expected_row(one, mask, (float(row[2]), float(row[4]), row[7]))
        else:
            assert f"{low:.1f} to {low + 0.2:.1f}" not in rows
    table = out.split("Sequences with the highest divergence\n")[1].split("\n\n")[0].splitlines()
    assert cells(table[0])[:2] == ["file", "sequence"]
    masks = sorted((kept & (many.sequences == number) for number in range(5)), key=lambda mask: -one.kl[mask].mean())
    for line, mask in zip(table[1:], masks, strict=True):
        first = np.flatnonzero(mask)[0]
        place = [str(many.path / "base" / f"part-{int(first >= 13)}.npz"), str(many.segment_ids[first])]
        assert cells(line) == [*place, *expected_row(one, mask, ())]


def test_tables_of_groups_of_one_token_have_no_errors():
    one = of_kl([1.0])
    rows = printed({"q": one})
    row = next(row for row in rows if row[0] == "0.4 to 0.6")
    assert row[1:] == ["1", f"{one.mean_kl:.6f}", f"{one.log_perplexity_ratio:+.5f}", *row[4:]]
    assert rows[0][1].startswith("1 token, ")


def test_table_of_token_types():
    one = of_kl([1.0, 2.0, 0.5, 0.25])
    table = one.by(["word", "word", "number", "punctuation"])
    types = [
        dict(zip(table, row, strict=True)) for row in zip(*(part.tolist() for part in table.values()), strict=True)
    ]
    rows = printed({"q": one}, by_token_type=types)
    at = rows.index(["By type of token"])
    assert [row[0] for row in rows[at + 2 : at + 5]] == ["word", "number", "punctuation"]  # by divergence
    assert rows[at + 2][1:3] == ["2", f"{one.kl[:2].mean():.6f}"]


def test_numbers_are_not_cut_on_a_narrow_terminal(many, command, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    for argv in many.argv(), many.argv("q4"):
        out = re.sub(r"\x1b\[[\d;]*m", "", command(*argv)[1])
        one = many.comparison("q4")
        assert f"{one.mean_kl:.6f}" in out
        assert any(f"{one.mean_kl:.6f}" in line and f"{one.mean_kl.stderr:.6f}" in line for line in out.splitlines())


# -- plots and pages --------------------------------------------------------------------------------------------------


def test_plot_of_several_candidates(many, command, monkeypatch):
    figures = []
    draw = divergence_plot.draw_candidates
    monkeypatch.setattr(
        divergence_plot,
        "draw_candidates",
        lambda *args, **options: figures.append((args, options)) or draw(*args, **options),
    )
    status, _, err = command(*many.argv(), "--size", "q8=8.5G", "--plot", many.path / "kl.svg")
    assert (status, err) == (0, "")
    (((comparisons,), options),) = figures
    assert list(comparisons) == ["q8", "q2", "q4"]
    assert options == {"sizes": {"q8": 8_500_000_000}, "title": f"3 models vs {many.path / 'base'}"}
    assert "<svg" in (many.path / "kl.svg").read_text("utf-8")


@pytest.mark.parametrize("most", [100_000, 60])
def test_page_of_several_candidates(most, many, command, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(page, "MOST_TOKENS", most)
    path = many.path / "page.html"
    status, _, err = command(*many.argv(), "--html", path)
    assert (status, err) == (0, "")
    result, size = Reader(path.read_text("utf-8")), min(40, most // 3)
    data = result.data
    assert result.text("h1") == f"KL divergence of {many.comparison('q4').count} tokens: 3 models vs base"
    assert [one["name"] for one in data["models"]] == ["q8", "q4", "q2"]
    assert result.ids(data["target"]) == [None if i < 0 else i for i in many.targets[:size].tolist()]
    assert [text for _, text in result.tokens] == many.tokens[:size].tolist()
    assert result.places["file"] == np.repeat([0, 1], [13, 27])[:size].tolist()
    assert result.places["row"] == [*range(13), *range(27)][:size]
    assert result.places["position"] == [i for n in (6, 7, 10, 9, 8) for i in range(n)][:size]
    assert result.paragraphs == len({*zip(result.places["file"], result.places["sequence"], strict=True)})
    scores = tokenloss.token_scores(many.base, many.targets, top_k=5)
    sides = [(data["base"], scores)]
    for one in data["models"]:
        sides.append((one, tokenloss.token_scores(many.logits[one["name"]], many.targets, top_k=5)))
        kl = many.comparison(one["name"]).kl[:size]
        np.testing.assert_allclose(np.array(one["kl"], float), kl, rtol=1e-5, atol=1e-12)
    for side, scores in sides:
        assert side["k"] == 5
        assert side["rank"] == scores.rank[:size].tolist()
        assert result.ids(side["top"]) == scores.top_ids[:size].reshape(-1).tolist()
        np.testing.assert_allclose(np.array(side["nll"], float), scores.nll[:size], rtol=1e-5)
        chances = 100 * np.exp(scores.top_logprobs[:size].reshape(-1))
        np.testing.assert_allclose(np.array(side["chance"], float), chances, rtol=5e-3)
    assert ("first 20 of 40 tokens, since 3 models share 60" in result.text("p")) == (most == 60)


def test_page_of_one_candidate(many, command):
    path = many.path / "page.html"
    assert command(*many.argv("q4"), "--html", path)[::2] == (0, "")
    result = Reader(path.read_text("utf-8"))
    assert result.text("h1") == f"KL divergence of {many.comparison('q4').count} tokens: q4 vs base"
    assert "option" not in result.texts
    assert [text for _, text in result.tokens] == many.tokens.tolist()
    assert result.text("code") == shlex.join(["tokenloss", *map(str, [*many.argv("q4"), "--html", path])])


def test_outputs_of_one_file_without_sequences_or_text(models, command):
    base, other = models.path / "base.npz", models.path / "other.npy"
    with np.load(base) as file:
        np.savez(base, logits=file["logits"].reshape(24, 9), targets=file["targets"].reshape(24))
    path = models.path / "page.html"
    assert command("compare", base, other, "--html", path)[::2] == (0, "")
    result = Reader(path.read_text("utf-8"))
    assert result.places == {"row": [*range(24)]}
    assert [text for _, text in result.tokens] == [f"#{i}" for i in models.targets.reshape(-1)]
    assert result.paragraphs == 1
