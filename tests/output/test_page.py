"""page.write_page: its HTML as a parser reads it, its data of each token, and how a browser shows it."""

import json
import math
import re
from importlib import resources

import numpy as np
import pytest
from browser import CARD, assert_quiet, middle
from pages import NASTY, Reader, made_up
from places import SAMPLE

import tokenloss
from tokenloss import page, results, token_scores
from tokenloss._output import page as frame
from tokenloss._scores.token_scores import COLUMNS


@pytest.fixture
def write(tmp_path):
    """Write a page and read it."""

    def write(scores, targets, **options):
        page.write_page(tmp_path / "page.html", scores, targets, **options)
        return Reader((tmp_path / "page.html").read_text("utf-8"))

    return write


@pytest.fixture(scope="module")
def sample():
    """The sample: its scores, with five alternatives, targets and tokens."""
    with np.load(SAMPLE) as data:
        return token_scores(data["logits"], data["targets"], top_k=5), data["targets"], data["tokens"]


def scores_of(nll, **fields):
    """Scores with these losses; all else is made up."""
    nll = np.asarray(nll, np.float64)
    ids = np.zeros(nll.shape, np.int64)
    full = {name: np.zeros(nll.shape, column.dtype) for name, column in COLUMNS.items() if not column.is_top}
    full |= {"nll": nll, "entropy": nll / 2, "rank": ids + 3, "argmax": ids + 7, "kept": ids == 0}
    return results.TokenScores(**{**full, **fields})


def shown(write, tokens, **options):
    """The text of each token on a page."""
    found = write(scores_of(np.ones(len(tokens))), np.arange(len(tokens)), tokens=tokens, **options)
    return [text for _, text in found.tokens]


# -- the file ---------------------------------------------------------------------------------------------------------


def test_page_of_the_sample(sample, write):
    scores, targets, tokens = sample
    found = write(scores, targets, tokens=tokens, title="whisper & co")
    assert found.text("h1") == found.text("title") == "whisper & co"
    assert "".join(text for _, text in found.tokens) == "".join(tokens).replace("Ġ", " ")
    assert found.paragraphs == 1
    data = found.data
    assert data["token"] == tokens.tolist()
    assert data["id"] == targets.tolist()
    assert data["rank"] == scores.rank.tolist()
    assert data["loss"] == pytest.approx(scores.nll.tolist(), rel=1e-5)
    assert data["entropy"] == pytest.approx(scores.entropy.tolist(), rel=1e-5)
    assert data["k"] == 5
    assert data["top"] == scores.top_ids.reshape(-1).tolist()
    assert data["logprob"] == pytest.approx(scores.top_logprobs.reshape(-1).tolist(), rel=1e-5)
    assert data["text"] == {str(target): token for target, token in zip(targets, tokens, strict=True)}


def test_page_summary(sample, write):
    scores, targets, tokens = sample
    found = write(scores, targets, tokens=tokens)
    words = " ".join(found.text("dd").split()) + found.text("small")
    losses = scores.nll
    loss, stderr = losses.mean(), losses.std(ddof=1) / math.sqrt(len(losses))
    low, high = (math.exp(loss + t * stderr) for t in (-2.144787, 2.144787))
    for figure in (
        "15", f"{loss:.5g}", f"± {stderr:.3g} nats", f"{math.exp(loss):.5g}", f"95 % interval {low:.4g} to {high:.4g}",
        f"{loss / math.log(2):.5g}", "100.00 %",
    ):  # fmt: skip
        assert figure in words
    assert found.texts["dt"] == ["tokens", "loss", "perplexity", "bits per token", "greedy accuracy"]


def test_meter_and_accuracy_of_more_than_the_page_holds(write):
    meter = tokenloss.LossMeter()
    meter.update(np.full(1000, 2.0), n_bytes=4000)
    found = write(scores_of([1.0, 2.0]), [3, 4], meter=meter, accuracy=0.25)
    assert found.texts["dt"] == ["tokens", "loss", "perplexity", "bits per token", "bits per byte", "greedy accuracy"]
    assert [value.strip() for value in found.texts["dd"]] == ["1,000", "2", "7.3891", "2.8854", "0.72135", "25.00 %"]
    assert "first 2 of 1,000 tokens" in found.text("p")


def test_page_holds_the_first_tokens(write, monkeypatch):
    monkeypatch.setattr(frame, "MOST_TOKENS", 5)
    scores = scores_of(
        np.arange(8.0).reshape(2, 4), top_ids=np.arange(16).reshape(2, 4, 2), top_logprobs=np.ones((2, 4, 2))
    )
    found = write(scores, np.arange(8).reshape(2, 4), tokens=np.array(list("abcdefgh")).reshape(2, 4))
    assert [text for _, text in found.tokens] == list("abcde")
    assert found.paragraphs == 2
    assert found.data["top"] == list(range(10))
    assert {len(found.data[name]) for name in ("id", "rank", "loss", "entropy", "token")} == {5}
    assert "first 5 of 8 tokens" in found.text("p")
    assert found.texts["dd"][0].strip() == "8"


# both kinds of pages, of the arguments that a test changes
PAGES = {
    "loss": lambda path, **change: page.write_page(
        path, **{"scores": scores_of(np.ones(3)), "targets": [0, 1, 2]} | change
    ),
    "divergence": lambda path, **change: page.write_comparison_page(
        path, **{"comparisons": {"a": made_up(np.ones(3))}, "targets": [0, 1, 2]} | change
    ),
}


@pytest.mark.parametrize("kind", PAGES)
def test_page_loads_nothing(kind, sample, tmp_path):
    scores, targets, tokens = sample
    own = {"scores": scores} if kind == "loss" else {
        "comparisons": {"a": made_up(scores.nll), "b": made_up(scores.nll)}, "base_scores": scores,
        "scores": {"a": scores, "b": scores},
    }  # fmt: skip
    PAGES[kind](tmp_path / "page.html", targets=targets, tokens=tokens, title="a text", **own)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert not re.search(
        r"https?:|//|url\(|@import|\b(src|href|srcset|action)\s*=|<(link|base|iframe|img|object)", text
    )
    assert "default-src 'none'" in text


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 3)])
def test_tokens_of_any_shape(shape, kind, tmp_path):
    own = {"scores": scores_of(np.ones(shape))} if kind == "loss" else {"comparisons": {"q": made_up(np.ones(shape))}}
    PAGES[kind](tmp_path / "page.html", targets=np.zeros(shape, np.int32), vocabulary=["x"], **own)
    found = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert [text for _, text in found.tokens] == ["x"] * math.prod(shape)
    assert "of all" not in found.text("p")


OF_TWO = token_scores(np.ones((2, 2)), [0, 0])
WRONG = [
    ({"targets": [0, 1]}, ["targets has shape (2,)", "(3,)"]),
    ({"targets": [0.0, 1.0, 2.0]}, ["targets has dtype float64", "integer"]),
    ({"tokens": ["a", "b"]}, ["tokens has shape (2,)", "(3,)"]),
    ({"tokens": [1, 2, 3]}, ["tokens has dtype int64", "text"]),
]
WRONG_COMPARISONS = [
    ({"comparisons": {}}, ["comparisons is {}"]),
    ({"comparisons": {"a": made_up(np.ones(3)), "b": made_up(np.ones(2))}}, ["comparisons['b']", "(2,)", "(3,)"]),
    (
        {"comparisons": {"a": made_up(np.ones(3)), "b": made_up(np.ones(3), base_nll=np.ones(3))}},
        ["comparisons is ['a', 'b']", "one base"],
    ),
    ({"scores": {}}, ["scores is []", "['a']"]),
    ({"scores": {"a": OF_TWO}}, ["scores['a'] has shape (2,)", "(3,)"]),
    ({"base_scores": OF_TWO}, ["base_scores has shape (2,)", "(3,)"]),
]


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [(kind, *case) for kind in PAGES for case in WRONG] + [("divergence", *case) for case in WRONG_COMPARISONS],
)
def test_wrong_arguments(kind, change, words, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises((TypeError, ValueError)) as raised:
        PAGES[kind](path, **change)
    for word in words:
        assert word in str(raised.value)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["In", " the", "\n"], ["In", " the", "\n"]),
        (["ĠIn", "Ġthe", "ĊĊ", "ĉ"], [" In", " the", "\n\n", "\t"]),
        (["ĠÃ©tÃ©", "Ġè¡", "Į"], [" été", " ", "行"]),
        (["ðŁĺ", "Ĥ", "Ġx"], ["", "😂", " x"]),
        (["Ċ", "<|日本|>", "Â"], ["\n", "<|日本|>", ""]),
        (["Ġx", "Ã", "Ġy"], [" x", "", "\ufffd y"]),
        (["Ġkul", " Ġobża", " ", " Ċar"], ["Ġkul", " Ġobża", " ", " Ċar"]),
        (["▁In", "▁the", "▁▁x", "<0x0A>", "<0xE2>", "<0x82>", "<0xAC>"], [" In", " the", "  x", "\n", "", "", "€"]),
        (["a\rb", "\x00\x1b", "\x7f"], ["a␍b", "␀␛", "␡"]),
        (["\ud800", "a\u202eb"], ["?", "a\ufffdb"]),
    ],
)
def test_tokens_with_marks_of_tokenizers(tokens, text, write):
    assert shown(write, tokens) == text


TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # Unicode's Bidi_Control


def test_tokens_with_bidi_controls(write):
    tokens = [f"a{c}b" for c in TURNING]
    found = write(scores_of(np.ones(12)), np.arange(12), tokens=tokens, vocabulary=tokens, title=TURNING)
    assert [text for _, text in found.tokens] == ["a\ufffdb"] * 12
    assert found.text("h1") == found.text("title") == "\ufffd" * 12
    assert found.data["token"] == list(found.data["text"].values()) == ["a\ufffdb"] * 12


def test_tokens_of_byte_level_bpe(write):
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    sign = {byte: chr(byte if byte in seen else next(others)) for byte in range(256)}
    turning = 0x061C  # is replaced
    text = [chr(code) + " " for code in range(0xA0, 0x2000) if code != turning]  # lead and other bytes of two and three
    tokens = ["".join(sign[byte] for byte in word.encode()) for word in text]
    assert shown(write, tokens) == text


def test_tokens_with_markup(write):
    found = write(
        scores_of(np.ones(len(NASTY)), top_ids=np.arange(len(NASTY))[:, None], top_logprobs=np.zeros((len(NASTY), 1))),
        np.arange(len(NASTY)),
        tokens=NASTY,
        vocabulary=NASTY,
        title=NASTY[0],
    )
    assert len(found.texts["script"]) == 2
    assert [text for _, text in found.tokens][:12] == [*NASTY[:10], "␀␍", "\ufffd"]
    assert found.data["token"][:12] == [*NASTY[:11], "\ufffd"]
    assert found.data["text"]["0"] == NASTY[0]
    assert found.text("h1") == NASTY[0]


@pytest.mark.parametrize("token", ["<!--", "<!--<script>", "<script", "</script", "<SCRIPT>", "]]>"])
def test_tokens_that_would_change_how_browsers_read_a_script(token, tmp_path):
    """HTML's own advice: in a script, none of <!--, <script and </script, which end it or hide its end."""
    page.write_page(tmp_path / "page.html", scores_of([1.0]), [0], tokens=[token], vocabulary=[token], title=token)
    text = (tmp_path / "page.html").read_text("utf-8")
    data = re.search(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)[1]
    assert json.loads(data)["token"] == [token]
    assert not re.search("<!--|</?script", data, re.IGNORECASE)


def test_vocabulary(write):
    scores = scores_of(np.ones(4), top_ids=np.array([[1], [0], [9], [-1]]), top_logprobs=np.zeros((4, 1)))
    targets = np.array([0, 2, 5, -1])
    found = write(scores, targets, vocabulary=["a", "b", "c"])
    assert [text for _, text in found.tokens] == ["a", "c", "5", "-1"]
    assert ["id" in look for look, _ in found.tokens] == [False, False, True, True]
    assert found.data["text"] == {"0": "a", "1": "b", "2": "c"}
    assert found.data["token"] is None
    assert [text for _, text in write(scores, targets).tokens] == ["0", "2", "5", "-1"]
    assert [text for _, text in write(scores, targets, tokens=["x", None, "y", "z"]).tokens] == ["x", "2", "y", "z"]


def test_top_ids_missing(write):
    data = write(scores_of([1.0, 2.0]), [7, 8]).data
    assert (data["k"], data["top"], data["logprob"]) == (1, [7, 7], [None, None])


# -- colors ------------------------------------------------------------------------------------------------------------


def test_shades_of_losses(write):
    nll = [0.0, 0.099, 0.1, 0.7, 1.0, 2.5, 3.5, 5.0, 7.0, 9.99, 10.0, 1e300, math.inf, math.nan, 0.0]
    kept = np.arange(15) < 14
    found = write(scores_of(nll, kept=kept), np.arange(15), tokens=list("abcdefghijklmno"))
    shades = ["s0", "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s9"]
    assert [look for look, _ in found.tokens] == [[look] for look in [*shades, "inf", "nan", "ignored"]]
    assert found.data["loss"][-3:] == [math.inf, None, 0]
    legend = found.texts["span"]
    for word in ("infinite loss", "no number", "ignored"):
        assert legend[legend.index(word) + 1] == "1"
    assert "ignored" not in write(scores_of([1.0]), [0]).texts["span"]


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first, second):
    """The ratio of the Web Content Accessibility Guidelines."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_colors():
    style = resources.files("tokenloss._output").joinpath("page.css").read_text("utf-8")
    light = dict(re.findall(r"--([\w-]+): (#\w{6});", style.split("@media")[0]))
    dark = light | dict(re.findall(r"--([\w-]+): (#\w{6});", style.split("@media")[1]))
    for colors in (light, dark):
        for ground in ("paper", "raised", "hatch-1", "hatch-2", *(f"s{shade}" for shade in range(1, 10))):
            assert contrast(colors["ink"], colors[ground]) >= 4.5, ground
        assert contrast(colors["dim"], colors["paper"]) >= 4.5
        assert contrast(colors["dim"], colors["raised"]) >= 4.5
        steps = [luminance(colors[f"s{shade}"]) for shade in range(1, 10)]
        assert steps == sorted(steps, reverse=colors is light)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_path_in_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        page.write_page(tmp_path / "none" / "page.html", scores_of([1.0]), [0])


# -- in a browser -----------------------------------------------------------------------------------------------------


TEXT = """[...document.querySelectorAll("#text i")].map(token => token.innerText)"""


def test_browser_shows_the_sample(browser, sample, tmp_path):
    scores, targets, tokens = sample
    path = tmp_path / "sample.html"
    page.write_page(path, scores, targets, tokens=tokens)
    browser.open(path)
    text = "In the beginning God created the heaven and the earth, and the earth was"
    assert browser.run("""document.getElementById("text").innerText.trim()""") == text
    assert browser.run(CARD) is None
    browser.point(*middle(browser, 8))
    card = browser.run(CARD)
    for word in (
        "Ġthe", "id 262", "position 8", "26.3 %", "rank\n1\n",
        f"{scores.nll[8]:.5g} nats", f"{scores.entropy[8]:.5g} nats",
        *map(str, scores.top_ids[8]), *(f"{100 * share:.3g} %" for share in np.exp(scores.top_logprobs[8])),
    ):  # fmt: skip
        assert word in card
    browser.point(5, 5)
    assert browser.run(CARD) is None
    assert_quiet(browser, path)


def test_browser_shows_tokens_with_markup(browser, tmp_path):
    size = len(NASTY)
    scores = scores_of(np.ones(size), top_ids=np.arange(size)[:, None], top_logprobs=np.full((size, 1), -1.0))
    path = tmp_path / "nasty.html"
    page.write_page(path, scores, np.arange(size), tokens=NASTY, vocabulary=NASTY, title=NASTY[0])
    browser.open(path)
    assert browser.run(TEXT)[:9] == NASTY[:9]
    assert browser.run("document.title") == NASTY[0]
    for index in range(size):
        browser.point(*middle(browser, index))
        assert f"position {index}\n" in browser.run(CARD)
        if index < 10:
            assert browser.run(CARD).startswith(NASTY[index].replace(" ", "␣") + "\n")
    assert browser.run("""document.querySelectorAll("script").length""") == 2
    assert_quiet(browser, path)


def test_browser_blocks_other_scripts(browser, sample, tmp_path):
    path = tmp_path / "page.html"
    page.write_page(path, sample[0], sample[1])
    path.write_text(
        path.read_text("utf-8").replace("<main", "<script>document.title = 'stolen'</script><main"), "utf-8"
    )
    browser.open(path)
    assert browser.run("document.title") == "tokenloss"


def test_browser_keyboard_and_touch(browser, sample, tmp_path):
    path = tmp_path / "page.html"
    page.write_page(path, sample[0], sample[1], tokens=sample[2])
    browser.open(path)
    place = """document.activeElement.innerText"""
    browser.press("Tab")
    assert browser.run(place) == " In"
    assert "position 0" in browser.run(CARD)
    for key, position in ("ArrowRight", 1), ("End", 14), ("ArrowRight", 14), ("ArrowLeft", 13), ("Home", 0):
        browser.press(key)
        assert f"position {position}\n" in browser.run(CARD)
    browser.press("Escape")
    assert browser.run(CARD) is None
    browser.open(path, width=390, touch=True)
    browser.tap(*middle(browser, 4))
    assert browser.run("new Promise(done => setTimeout(done, 300))") is None
    assert "position 4\n" in browser.run(CARD)
    assert_quiet(browser, path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_color_schemes(scheme, browser, sample, tmp_path):
    path = tmp_path / "page.html"
    page.write_page(path, sample[0], sample[1], tokens=sample[2])
    browser.open(path, scheme=scheme)
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    ink = browser.run("getComputedStyle(document.body).color")
    brightness = [sum(map(int, re.findall(r"\d+", color))) for color in (paper, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_browser_wraps_words(browser, tmp_path):
    tokens = ["Ġun", "believ", "ably"] * 60 + ["x" * 400]
    path = tmp_path / "page.html"
    page.write_page(path, scores_of(np.linspace(0, 12, len(tokens))), np.arange(len(tokens)), tokens=tokens)
    browser.open(path, width=390)
    lines = browser.run(
        """[...document.querySelectorAll("#text i")].map(token => token.getBoundingClientRect().bottom)"""
    )
    words = np.reshape(lines[:-1], (-1, 3))
    assert len(np.unique(words[:, 0])) > 5
    assert (words == words[:, :1]).all()
    assert browser.run("document.documentElement.scrollWidth") <= 390


def test_browser_opens_many_tokens(browser, tmp_path):
    size = 20_000
    path = tmp_path / "page.html"
    page.write_page(path, scores_of(np.linspace(0, 12, size)), np.arange(size) % 7, vocabulary=[*"abcde\n", " "])
    browser.open(path)
    assert browser.run("""document.querySelectorAll("#text i").length""") == size
    browser.run("""document.querySelectorAll("#text i")[19999].scrollIntoView()""")
    browser.point(*middle(browser, size - 1))
    assert "position 19999" in browser.run(CARD)
    assert_quiet(browser, path)
