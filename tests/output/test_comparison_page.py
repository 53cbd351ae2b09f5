"""page.write_comparison_page: its data against what NumPy computes, and how a browser shows it."""

import math
import re

import numpy as np
import pytest
from browser import CARD, assert_quiet, middle
from html_pages import LOOKS, NASTY, Reader, estimate, made_up

from tokenloss import compare, page, token_scores
from tokenloss._output import page as frame

VOCABULARY = ["a", " b", "c\n", "d", " e", "f", " g", "h", " i"]


@pytest.fixture
def write(tmp_path):
    """Write a page and read it."""

    def write(comparisons, targets, **options):
        page.write_comparison_page(tmp_path / "page.html", comparisons, targets, **options)
        return Reader((tmp_path / "page.html").read_text("utf-8"))

    return write


class Models:
    """Logits of a base and of two models, and what a page of them takes."""

    def __init__(self, shape=(4, 6), noises=(("q2", 2.0), ("q8", 0.1))):
        rng = np.random.default_rng(5)
        self.base = rng.normal(size=(*shape, 9), scale=2)
        self.logits = {name: self.base + rng.normal(size=self.base.shape, scale=noise) for name, noise in noises}
        self.targets = rng.integers(9, size=shape)
        self.comparisons = {name: compare(self.base, one, self.targets) for name, one in self.logits.items()}
        self.base_scores = token_scores(self.base, self.targets, top_k=3)
        self.scores = {name: token_scores(one, self.targets, top_k=2) for name, one in self.logits.items()}

    def options(self):
        return {"base_scores": self.base_scores, "scores": self.scores, "vocabulary": VOCABULARY}


def log_probs(logits):
    """Log-probabilities in long double, flat."""
    logits = logits.astype(np.longdouble).reshape(-1, logits.shape[-1])
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def divergences(base, logits):
    base, other = log_probs(base), log_probs(logits)
    return (np.exp(base) * (base - other)).sum(-1)


def close(values):
    return pytest.approx([float(value) for value in values], rel=1e-5, abs=1e-12)


def test_data_of_models(write):
    models = Models()
    result = write(models.comparisons, models.targets, title="2 & more", **models.options())
    data, targets = result.data, models.targets.reshape(-1)
    assert result.text("h1") == result.text("title") == "2 & more"
    assert result.paragraphs == 4
    assert [model["name"] for model in data["models"]] == ["q8", "q2"]  # the smallest divergence first
    assert result.ids(data["target"]) == targets.tolist()
    rows = np.arange(24)
    for side, logits, k in [
        (data["base"], models.base, 3), *((one, models.logits[one["name"]], 2) for one in data["models"]),
    ]:  # fmt: skip
        expected = log_probs(logits)
        order = np.argsort(-expected, -1)
        assert side["nll"] == close(-expected[rows, targets])
        assert side["rank"] == (1 + np.argmax(order == targets[:, None], -1)).tolist()
        assert side["k"] == k
        assert result.named(side["top"]) == [VOCABULARY[i] for i in order[:, :k].reshape(-1)]
        chances = 100 * np.exp(np.take_along_axis(expected, order[:, :k], -1).reshape(-1))
        assert side["chance"] == pytest.approx(chances.astype(float), rel=5e-3)
    shades = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    for one in data["models"]:
        expected = divergences(models.base, models.logits[one["name"]])
        assert one["kl"] == close(expected)
        assert one["worst"] == np.argsort(-expected, kind="stable").tolist()
        assert one["shades"] == "".join(str(sum(value >= shade for shade in shades)) for value in expected)
    assert [look[0] for look, _ in result.tokens] == [f"s{shade}" for shade in data["models"][0]["shades"]]
    assert "".join(text for _, text in result.tokens) == "".join(VOCABULARY[i] for i in targets)
    assert result.named(range(9)) == [VOCABULARY[i] for i in data["class_id"]]
    assert result.places == {"sequence": np.repeat(np.arange(4), 6).tolist(), "position": [*range(6)] * 4}


def test_summaries_and_legends(write):
    models = Models()
    result = write(models.comparisons, models.targets)
    words = " ".join(result.texts["dd"] + result.texts["small"])
    for logits in models.logits.values():
        kl, n = divergences(models.base, logits), 24
        difference = log_probs(models.base) - log_probs(logits)
        loss = difference[np.arange(n), models.targets.reshape(-1)]
        same = log_probs(models.base).argmax(-1) == log_probs(logits).argmax(-1)
        for figure in (
            f"{kl.mean():.4g}", f"± {kl.std(ddof=1) / math.sqrt(n):.2g} nats (by tokens, assumed independent)",
            f"{np.quantile(kl.astype(float), 0.999):.4g}", f"{np.exp(loss.mean()):.5g}",
            f"± {np.exp(loss.mean()) * loss.std(ddof=1) / math.sqrt(n):.2g}", f"{100 * same.mean():.2f} %",
        ):  # fmt: skip
            assert figure in words
        shares = [np.mean((kl >= low) & (kl < high)) for low, high in [(0, 0.001), (0.1, 0.3), (0.3, 1)]]
        for share in shares:
            assert f"{100 * share:.2g} %" in result.texts["td"]
    assert result.texts["option"] == [
        f"{name} (mean divergence {divergences(models.base, models.logits[name]).mean():.4g})" for name in ("q8", "q2")
    ]


def test_shades_of_special_values(write):
    kl = [0.0, -1e-17, 0.000999, 0.001, 0.003, 0.029, 0.03, 0.1, 0.3, 1.0, 3.0, 9.99, 10.0, math.inf, math.nan, 0.0]
    kept = np.arange(16) < 15
    one = made_up(kl, kept=kept, n_infinite=1, n_nan=1, finite_mean_kl=estimate(1.625, 0.25))
    result = write({"q": one}, np.zeros(16, int), tokens=list("abcdefghijklmnop"))
    assert result.data["models"][0]["shades"] == "0001234567889abc"
    assert [look for look, _ in result.tokens] == [[LOOKS[int(one, 36)]] for one in result.data["models"][0]["shades"]]
    assert result.data["models"][0]["kl"][-3:] == [math.inf, None, 0]
    assert result.texts["td"][10:13] == ["infinite", "no number", "ignored"]
    assert result.texts["td"][-3:] == ["1"] * 3
    assert "1.625 ± 0.25 nats without 2 that are not finite" in result.text("small")
    assert "option" not in result.texts  # of a single model


def test_summary_of_a_single_token(write):
    result = write({"q": compare([[0.0, 1.0]], [[1.0, 0.0]], [0])}, [0])
    assert "nan" not in " ".join(result.texts["dd"] + result.texts["small"])
    result = write({"q": compare([[0.0, 1.0]], [[-math.inf, 0.0]], [0])}, [0])
    assert "nan nats without 1 that are not finite" in result.text("small")
    result = write({"q": compare([[0.0, 1.0]], [[1.0, 0.0]], [-100])}, [-100])
    assert result.texts["dd"][0].strip() == "0"


def test_summary_of_two_sequences_says_that_its_error_is_a_guess(write):
    logits = np.random.default_rng(0).normal(size=(2, 40, 3))
    for ids, words in ((0, 1), "(by 2 sequences, too few for more than a guess)"), (range(40), "(by 40 sequences)"):
        one = compare(logits[0], logits[1], np.zeros(40, int), segment_ids=np.resize(ids, 40))
        assert words in write({"q": one}, np.zeros(40, int)).text("small")


def test_summary_has_the_parity_of_each_model(write):
    logits, targets = 4 * np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32), np.zeros(40, int)
    other = logits.astype(np.float16)
    other[7] *= -1
    models = {"same": compare(logits, logits, targets), "broken": compare(logits, other, targets)}
    result = write(models, targets)
    shown = [text.strip() for text in result.texts["dd"]]
    for name, one in models.items():
        assert one.parity.startswith(name)
        assert one.parity_reason in result.texts["small"]
        assert {one.parity, f"{one.n_identical}", f"{one.max_abs_logprob:.4g}", f"{one.decisive_flips} decisive"} <= {
            *shown
        }


def test_order_of_models(write):
    means = {"nan": math.nan, "b": 0.5, "inf": math.inf, "a": 0.25}
    result = write({name: made_up([0.1], mean_kl=mean) for name, mean in means.items()}, [0])
    assert [one["name"] for one in result.data["models"]] == ["a", "b", "inf", "nan"]


def test_page_holds_the_first_tokens_of_all_models(write, monkeypatch):
    monkeypatch.setattr(frame, "MOST_TOKENS", 20)
    models = Models()
    result = write(models.comparisons, models.targets, **models.options())
    assert len(result.tokens) == len(result.data["target"]) == 10
    assert result.paragraphs == 2
    for side in (result.data["base"], *result.data["models"]):
        assert {len(side[name]) for name in ("nll", "rank")} == {10}
        assert len(side["top"]) == len(side["chance"]) == 10 * side["k"]
    assert {len(one["shades"]) for one in result.data["models"]} == {10}
    assert "first 10 of 24 tokens, since 2 models share 20; the numbers are for all" in result.text("p")
    assert result.texts["dd"][0].strip() == "24"


def test_names_and_tokens_with_markup(write):
    names = ["</script><script>alert(1)", "<img src=x onerror=alert(2)>", "\u202e\x00\"'&"]
    comparisons = {name: made_up(np.full(len(NASTY), 0.5 + i)) for i, name in enumerate(names)}
    result = write(comparisons, np.arange(len(NASTY)), tokens=NASTY, vocabulary=NASTY, title=names[0])
    assert len(result.texts["script"]) == 2
    assert [one["name"] for one in result.data["models"]] == [*names[:2], "\ufffd\x00\"'&"]
    assert [one.split(" (mean")[0] for one in result.texts["option"]] == [*names[:2], "\ufffd␀\"'&"]
    assert [text for _, text in result.tokens][:10] == NASTY[:10]
    assert result.text("h1") == names[0]


# -- in a browser -----------------------------------------------------------------------------------------------------

CHOOSE = """(() => {
    const select = document.getElementById("model");
    select.value = %d;
    select.dispatchEvent(new Event("change"));
})()"""
SHADES = """[...document.querySelectorAll("#text i")].map(token => token.className)"""
SUMMARY = """[...document.querySelectorAll(".model")].filter(one => !one.hidden && one.offsetHeight)
    .map(one => one.innerText)"""


def test_browser_shows_both_models(browser, tmp_path):
    models, path = Models(), tmp_path / "page.html"
    page.write_comparison_page(path, models.comparisons, models.targets, **models.options())
    browser.open(path)
    at, target = 9, models.targets.reshape(-1)[9]
    for number, name in enumerate(("q8", "q2")):
        browser.run(CHOOSE % number)
        kl = divergences(models.base, models.logits[name])
        (summary,) = browser.run(SUMMARY)
        assert f"{kl.mean():.4g}" in summary
        shades = [sum(value >= edge for edge in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)) for value in kl]
        result = [one.split()[0] for one in browser.run(SHADES)]
        assert result == [f"s{shade}" for shade in shades]
        browser.point(5, 5)
        browser.point(*middle(browser, at))
        card = browser.run(CARD)
        assert f"KL divergence\n{float(f'{kl[at]:.5g}'):.5g} nats" in card
        assert card.index("base\n") < card.index(f"{name}\n")
        for logits, k in (models.base, 3), (models.logits[name], 2):
            expected = log_probs(logits)[at]
            chances = [100 * math.exp(value) for value in sorted(expected)[::-1][:k]]
            for chance in (100 * math.exp(expected[target]), *chances):
                assert re.search(rf"\b{re.escape(f'{chance:.3g}')} %", card)
            assert f"{float(f'{-expected[target]:.5g}'):.5g} nats" in card
    assert_quiet(browser, path)


def test_browser_keeps_looks_when_a_model_is_chosen(browser, tmp_path):
    kl = {"a": [0.0, 0.5, math.inf, math.nan, 0.0], "b": [math.nan, math.inf, 0.002, 20.0, 0.0]}
    kept = np.arange(5) < 4
    path, tokens = tmp_path / "page.html", ["x", "\n", None, "\u0301", "y"]
    comparisons = {name: made_up(value, kept=kept, mean_kl=1.0) for name, value in kl.items()}
    page.write_comparison_page(path, comparisons, np.arange(5), tokens=tokens)
    browser.open(path)
    looks = [
        ["s0", "s6 br", "inf id", "nan thin", "ignored"], ["nan", "inf br", "s1 id", "s9 thin", "ignored"],
    ]  # fmt: skip
    for number in (0, 1, 0):
        browser.run(CHOOSE % number)
        assert browser.run(SHADES) == looks[number]
    browser.point(*middle(browser, 4))
    assert "ignored: no part of the comparison" in browser.run(CARD)
    browser.point(*middle(browser, 2))
    assert "KL divergence\ninf nats" in browser.run(CARD)
    assert_quiet(browser, path)


def test_browser_shows_names_and_tokens_with_markup(browser, tmp_path):
    names = ["<b>x</b></script>", "&amp;\"'"]
    path = tmp_path / "page.html"
    comparisons = {name: made_up(np.full(len(NASTY), 0.5 + i), mean_kl=i) for i, name in enumerate(names)}
    page.write_comparison_page(path, comparisons, np.arange(len(NASTY)), tokens=NASTY, title=names[0])
    browser.open(path)
    for number, name in enumerate(names):
        browser.run(CHOOSE % number)
        for index in range(10):
            browser.point(*middle(browser, index))
            card = browser.run(CARD)
            assert card.startswith(NASTY[index].replace(" ", "␣") + "\n")
            assert f"\n{name}\n" in card
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert_quiet(browser, path)


def test_browser_keyboard_reaches_the_choice_of_a_model(browser, tmp_path):
    models, path = Models(), tmp_path / "page.html"
    page.write_comparison_page(path, models.comparisons, models.targets, **models.options())
    browser.open(path)
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "model"
    assert browser.run("document.activeElement.labels[0].innerText").startswith("Model")
    browser.run("document.getElementById('query').focus()")
    browser.press("Tab")
    assert "position 0\n" in browser.run(CARD)
    for key, position in ("ArrowRight", 1), ("End", 5), ("Home", 0):
        browser.press(key)
        assert f"position {position}\n" in browser.run(CARD)
    browser.press("Escape")
    assert browser.run(CARD) is None


@pytest.mark.parametrize("width", [320, 390, 1000])
def test_browser_fits_narrow_windows(width, browser, tmp_path):
    noises = [("unsloth/" + "long-name-" * 12 + ".gguf", 0.1), ("q2", 1.0)]
    models, path = Models(noises=noises), tmp_path / "page.html"
    page.write_comparison_page(path, models.comparisons, models.targets, **models.options())
    browser.open(path, width=width)
    browser.point(*middle(browser, 3))
    assert browser.run("document.documentElement.scrollWidth") <= width
    left, right = browser.run("(box => [box.left, box.right])(document.getElementById('card').getBoundingClientRect())")
    assert (left >= 0, right <= browser.run("document.documentElement.clientWidth")) == (True, True)
