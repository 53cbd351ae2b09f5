"""page.write_page: its HTML as a parser reads it, and its data of each token."""

import json
import math
import re
import shlex
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from html_pages import NASTY, Reader, made_up, sample, scores_of
from places import TESTS

import tokenloss
from tokenloss import evaluate, page, sinks, token_scores
from tokenloss._output import page as frame
from tokenloss.formats import blocks


@pytest.fixture
def write(tmp_path):
    """Write a page and read it."""

    def write(scores, targets, **options):
        page.write_page(tmp_path / "page.html", scores, targets, **options)
        return Reader((tmp_path / "page.html").read_text("utf-8"))

    return write


def shown(write, tokens, **options):
    """The text of each token on a page."""
    result = write(scores_of(np.ones(len(tokens))), np.arange(len(tokens)), tokens=tokens, **options)
    return [text for _, text in result.tokens]


# -- the file ---------------------------------------------------------------------------------------------------------


def test_page_of_the_sample(write):
    scores, targets, tokens = sample()
    result = write(scores, targets, tokens=tokens, title="whisper & co")
    assert result.text("h1") == result.text("title") == "whisper & co"
    assert "".join(text for _, text in result.tokens) == "".join(tokens).replace("Ġ", " ")
    assert result.paragraphs == 1
    data, (model,) = result.data, result.data["models"]
    plain = [token.replace("Ġ", " ") for token in tokens]
    assert result.named(data["target"]) == plain
    assert result.ids(data["target"]) == targets.tolist()
    assert model["rank"] == scores.rank.tolist()
    assert model["nll"] == pytest.approx(scores.nll.tolist(), rel=1e-5)
    assert model["entropy"] == pytest.approx(scores.entropy.tolist(), rel=1e-4)
    assert model["k"] == 5
    text = dict(zip(targets.tolist(), plain, strict=True))
    assert result.named(model["top"]) == [text.get(i, i) for i in scores.top_ids.reshape(-1).tolist()]
    assert model["chance"] == pytest.approx(100 * np.exp(scores.top_logprobs.reshape(-1)), rel=5e-3)
    assert model["worst"] == np.argsort(-scores.nll, kind="stable").tolist()
    assert result.places == {"position": [*range(15)]}


def test_page_summary(write):
    scores, targets, tokens = sample()
    result = write(scores, targets, tokens=tokens)
    words = " ".join(result.text("dd").split()) + result.text("small")
    losses = scores.nll
    loss, stderr = losses.mean(), losses.std(ddof=1) / math.sqrt(len(losses))
    low, high = (math.exp(loss * math.exp(t * stderr / loss)) for t in (-2.144787, 2.144787))
    for figure in (
        "15", f"{loss:.5g}", f"± {stderr:.3g} nats", f"{math.exp(loss):.5g}", f"95 % interval {low:.4g} to {high:.4g}",
        f"{loss / math.log(2):.5g}", "100.00 %",
    ):  # fmt: skip
        assert figure in words
    assert result.texts["dt"] == ["tokens", "loss", "perplexity", "bits per token", "greedy accuracy"]


def test_meter_and_accuracy_of_more_than_the_page_holds(write):
    meter = tokenloss.LossMeter()
    meter.update(np.full(1000, 2.0), n_bytes=4000)
    result = write(scores_of([1.0, 2.0]), [3, 4], meter=meter, accuracy=0.25)
    assert result.texts["dt"] == ["tokens", "loss", "perplexity", "bits per token", "bits per byte", "greedy accuracy"]
    assert [value.strip() for value in result.texts["dd"]] == ["1,000", "2", "7.3891", "2.8854", "0.72135", "25.00 %"]
    assert "first 2 of 1,000 tokens" in result.text("p")


def test_page_holds_the_first_tokens(write, monkeypatch):
    monkeypatch.setattr(frame, "MOST_TOKENS", 5)
    scores = scores_of(
        np.arange(8.0).reshape(2, 4), top_ids=np.arange(16).reshape(2, 4, 2), top_logprobs=np.ones((2, 4, 2))
    )
    result = write(scores, np.arange(8).reshape(2, 4), tokens=np.array(list("abcdefgh")).reshape(2, 4))
    assert [text for _, text in result.tokens] == list("abcde")
    assert result.paragraphs == 2
    (model,) = result.data["models"]
    assert result.named(model["top"]) == [*"abcde", *range(5, 10)]
    assert {len(column) for column in (*result.places.values(), result.data["lengths"], result.data["target"])} == {5}
    assert {len(model[name]) for name in ("rank", "nll", "entropy", "worst")} == {5}
    assert result.anchors == ["sequence-0", "sequence-1"]
    assert "first 5 of 8 tokens" in result.text("p")
    assert result.texts["dd"][0].strip() == "8"


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
def test_page_loads_nothing(kind, tmp_path):
    scores, targets, tokens = sample()
    own = {"scores": scores} if kind == "loss" else {
        "comparisons": {"a": made_up(scores.nll), "b": made_up(scores.nll)}, "base_scores": scores,
        "scores": {"a": scores, "b": scores},
    }  # fmt: skip
    PAGES[kind](tmp_path / "page.html", targets=targets, tokens=tokens, title="a text", **own)
    text = (tmp_path / "page.html").read_text("utf-8")
    text = re.sub(r"id=\"data\">[\w+/=]+<", "", text)  # base64
    assert not re.search(
        r"https?:|//|url\(|@import|\b(src|href|srcset|action)\s*=|<(link|base|iframe|img|object)", text
    )
    assert "default-src 'none'" in text


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 3)])
def test_tokens_of_any_shape(shape, kind, tmp_path):
    own = {"scores": scores_of(np.ones(shape))} if kind == "loss" else {"comparisons": {"q": made_up(np.ones(shape))}}
    PAGES[kind](tmp_path / "page.html", targets=np.zeros(shape, np.int32), vocabulary=["x"], **own)
    result = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert [text for _, text in result.tokens] == ["x"] * math.prod(shape)
    assert "of all" not in result.text("p")


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
    result = write(scores_of(np.ones(12)), np.arange(12), tokens=tokens, vocabulary=tokens, title=TURNING)
    assert [text for _, text in result.tokens] == ["a\ufffdb"] * 12
    assert result.text("h1") == result.text("title") == "\ufffd" * 12
    assert result.data["class_text"] == ["a\ufffdb"] * 12


def test_tokens_of_byte_level_bpe(write):
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    sign = {byte: chr(byte if byte in seen else next(others)) for byte in range(256)}
    turning = 0x061C  # is replaced
    text = [chr(code) + " " for code in range(0xA0, 0x2000) if code != turning]  # lead and other bytes of two and three
    tokens = ["".join(sign[byte] for byte in word.encode()) for word in text]
    assert shown(write, tokens) == text


def test_tokenizer_joins_the_tokens_that_split_a_character(tmp_path):
    """The character stands over the last of them, and each names its own bytes, as do the likeliest tokens."""
    vocabulary = json.loads((TESTS / "data" / "model" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    text = "a 🙂 the"
    ids = np.array([*(vocabulary[piece] for piece in ("a", "Ġ", "ð", "Ł", "Ļ", "Ĥ", "Ġthe")), 0, -100])
    logits = np.where(np.arange(512) == ids[:, None], 9.0, 0.0)
    path = tmp_path / "page.html"
    evaluate(blocks([(logits, ids)], tokenizer=TESTS / "data" / "model"), sinks=[sinks.HtmlPage(path)])
    result = Reader(path.read_text("utf-8"))
    assert [shown for _, shown in result.tokens][:7] == ["a", " ", "", "", "", "🙂", " the"]
    assert "".join(shown for _, shown in result.tokens) == text + "#0"  # and nothing of padding
    pieces = [*text[:2], *(f"\\x{byte:02x}" for byte in "🙂".encode()), " the"]
    assert result.named(result.data["target"])[:7] == pieces
    assert result.named(result.data["models"][0]["top"][::5])[:7] == pieces
    assert "bits per byte" in result.text("dt")


def test_tokens_with_markup(write):
    result = write(
        scores_of(np.ones(len(NASTY)), top_ids=np.arange(len(NASTY))[:, None], top_logprobs=np.zeros((len(NASTY), 1))),
        np.arange(len(NASTY)),
        tokens=NASTY,
        vocabulary=NASTY,
        title=NASTY[0],
    )
    assert len(result.texts["script"]) == 2
    assert [text for _, text in result.tokens][:12] == [*NASTY[:10], "␀␍", "\ufffd"]
    assert result.data["class_text"][:12] == [*NASTY[:11], "\ufffd"]
    assert result.text("h1") == NASTY[0]


def test_vocabulary(write):
    scores = scores_of(np.ones(4), top_ids=np.array([[1], [0], [9], [-1]]), top_logprobs=np.zeros((4, 1)))
    targets = np.array([0, 2, 5, -1])
    result = write(scores, targets, vocabulary=["a", "b", "c"])
    assert [text for _, text in result.tokens] == ["a", "c", "#5", "#-1"]
    assert ["id" in look for look, _ in result.tokens] == [False, False, True, True]
    assert result.named(result.data["models"][0]["top"][:3]) == ["b", "a", 9]
    assert result.data["models"][0]["top"][3] == -1  # there is none
    assert [text for _, text in write(scores, targets).tokens] == ["#0", "#2", "#5", "#-1"]
    assert [text for _, text in write(scores, targets, tokens=["x", None, "y", "z"]).tokens] == ["x", "#2", "y", "z"]


def test_top_ids_missing(write):
    result = write(scores_of([1.0, 2.0]), [7, 8])
    (model,) = result.data["models"]
    assert (model["k"], result.named(model["top"]), model["chance"]) == (1, [7, 7], [None, None])


# -- colors ------------------------------------------------------------------------------------------------------------


def test_shades_of_losses(write):
    nll = [0.0, 0.099, 0.1, 0.7, 1.0, 2.5, 3.5, 5.0, 7.0, 9.99, 10.0, 1e300, math.inf, math.nan, 0.0]
    kept = np.arange(15) < 14
    result = write(scores_of(nll, kept=kept), np.arange(15), tokens=list("abcdefghijklmno"))
    shades = ["s0", "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s9"]
    assert [look for look, _ in result.tokens] == [[look] for look in [*shades, "inf", "nan", "ignored"]]
    assert result.data["models"][0]["nll"][-3:] == [math.inf, None, 0]
    assert result.data["models"][0]["worst"] == [12, 13, *range(11, -1, -1)]
    legend = result.texts["td"]
    assert legend[10:13] == ["infinite nll", "no number", "ignored"]
    assert legend[-3:] == ["1"] * 3
    assert "ignored" not in write(scores_of([1.0]), [0]).texts["td"]


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
        for ground in ("paper", "raised", "s1", "s2"):
            assert contrast(colors["dim"], colors[ground]) >= 4.5, ground
        for line in ("control", "accent", "wrong"):
            assert contrast(colors[line], colors["paper"]) >= 3, line
        steps = [luminance(colors[f"s{shade}"]) for shade in range(1, 10)]
        assert steps == sorted(steps, reverse=colors is light)


# -- the footer -------------------------------------------------------------------------------------------------------


def test_footer_says_what_made_the_page(command, npz, tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    name = "a&lt;b 'c'.npz"
    npz(logits=np.zeros((3, 4)), targets=[0, 1, 2]).rename(name)
    pages = []
    for _ in range(2):
        assert command("score", name, "--html", "page.html")[0] == 0
        pages.append(Path("page.html").read_text("utf-8"))
    assert pages[0] == pages[1]  # no time, and nothing of the machine
    assert str(tmp_path) not in pages[0]
    result = Reader(pages[0])
    assert result.text("code") == shlex.join(["tokenloss", "score", name, "--html", "page.html"])
    assert f"Made by tokenloss {tokenloss.__version__}: " in result.text("p")
    assert write(scores_of([1.0]), [0]).text("code") == "tokenloss.page.write_page"


# -- writing ----------------------------------------------------------------------------------------------------------


def test_path_in_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        page.write_page(tmp_path / "none" / "page.html", scores_of([1.0]), [0])
