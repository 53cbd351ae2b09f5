"""What a real browser shows of a page, and what its script does: the card, jumps, search, keys, names, printing."""

import re
import time

import laid_texts
import numpy as np
import pytest
from browser import CARD, PATIENCE, assert_quiet, middle
from html_pages import NASTY, Reader, sample, scores_of

from tokenloss import compare_texts, page, sinks
from tokenloss.formats import open_scores

NAME = """(({ ariaLabel, labels, innerText }) => ariaLabel ?? labels?.[0].innerText.trim() ?? innerText)(
    document.activeElement)"""
TEXT = """[...document.querySelectorAll("#text i")].map(token => token.innerText)"""


def test_browser_shows_the_sample(browser, tmp_path):
    scores, targets, tokens = sample()
    path = tmp_path / "sample.html"
    page.write_page(path, scores, targets, tokens=tokens)
    browser.open(path)
    text = "In the beginning God created the heaven and the earth, and the earth was"
    assert browser.run("""document.getElementById("text").innerText.trim()""") == text
    assert browser.run(CARD) is None
    browser.point(*middle(browser, 8))
    card = browser.run(CARD)
    for word in (
        "␣the\n#262\nposition 8\n", "26.3 %", "rank\n1\n",
        f"{scores.nll[8]:.5g} nats", f"{scores.entropy[8]:.5g} nats",
        *(f"#{i}" for i in scores.top_ids[8]), *(f"{100 * share:.3g} %" for share in np.exp(scores.top_logprobs[8])),
    ):  # fmt: skip
        assert word in card
    assert not re.search("[ĠĊ▁]", card)
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


def test_browser_shows_the_tokens_of_both_models_over_one_text(browser, tmp_path):
    text = "to be ü or"
    (tmp_path / "t.txt").write_bytes(text.encode())
    a, b = (
        laid_texts.model(tmp_path, name, [tokens], [0.5] * len(tokens))
        for name, tokens in (("a", [b"", *laid_texts.words(text), b""]), ("b", laid_texts.cut(text, 1)))
    )
    path = tmp_path / "page.html"
    sources = [open_scores(one.path, tokenizer=one.tokenizer) for one in (a, b)]
    names = "words", NASTY[0]
    compare_texts(*sources, text=tmp_path / "t.txt", names=names, shift=False, sinks=[sinks.SpanPage(path)])
    browser.open(path)
    assert browser.run(TEXT) == ["to", " be", " ü", " or"]
    browser.point(*middle(browser, 2))
    card = browser.run(CARD)
    assert card.startswith("␣ü\ndocument 0 · byte 5\ndifference\n1 nats\nwords\nnll\n0.5 nats\n␣ü\t60.7 %\n")
    assert card.endswith(f"{NASTY[0]}\nnll\n1.5 nats\n␣\t60.7 %\n\\xc3\t60.7 %\n\\xbc\t60.7 %")
    browser.point(*middle(browser, 3))
    assert "\nno text\t60.7 %" in browser.run(CARD)  # the end of the text
    looks = browser.run("""[...document.querySelectorAll("#text i")].map(token => token.className)""")
    assert looks == ["s0", "s5", "s5", "s3 shown"]
    assert_quiet(browser, path)


def test_browser_shows_a_very_long_token(browser, tmp_path):
    path, tokens = tmp_path / "page.html", ["a", "x" * 100_000, "\ufdfd" * 5000, "b"]
    page.write_page(path, scores_of(np.ones(4)), np.arange(4), tokens=tokens)
    browser.open(path, width=500)
    for at in range(4):
        browser.run(f"jump({at})")
        assert f"position {at}\n" in browser.run(CARD)
        assert browser.run("document.getElementById('card').offsetHeight") < 600
        assert browser.run("document.documentElement.scrollWidth") <= 500
    assert_quiet(browser, path)


def test_browser_blocks_other_scripts(browser, tmp_path):
    path = tmp_path / "page.html"
    page.write_page(path, *sample()[:2])
    path.write_text(
        path.read_text("utf-8").replace("<main", "<script>document.title = 'stolen'</script><main"), "utf-8"
    )
    browser.open(path)
    assert browser.run("document.title") == "tokenloss"


def test_browser_keyboard_and_touch(browser, tmp_path):
    path = tmp_path / "page.html"
    scores, targets, tokens = sample()
    page.write_page(path, scores, targets, tokens=tokens)
    browser.open(path)
    reached = []
    while browser.run("document.activeElement.tagName") != "I":
        browser.press("Tab")
        reached.append(browser.run(NAME))
    assert reached == [
        "Previous worst token", "Next worst token", "Search", " In",
    ]  # fmt: skip
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
def test_browser_color_schemes(scheme, browser, tmp_path):
    path = tmp_path / "page.html"
    scores, targets, tokens = sample()
    page.write_page(path, scores, targets, tokens=tokens)
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


def test_browser_shows_the_whole_color_scale_on_a_phone(browser, tmp_path):
    path = tmp_path / "page.html"
    page.write_page(path, scores_of([1.0, np.inf, np.nan, 1.0], kept=np.arange(4) < 3), np.arange(4))
    browser.open(path, width=390, touch=True)
    boxes = browser.run("""[...document.querySelectorAll(".legend td")].map((cell) => {
        const { left, right, top } = cell.getBoundingClientRect();
        return [left, right, top, cell.scrollWidth - cell.clientWidth];
    })""")
    left, right, top, cut = np.reshape(boxes, (2, -1, 4)).T
    assert left.min() >= 0
    assert right.max() <= 390
    assert cut.max() <= 0
    assert (left[:, 0] == left[:, 1]).all()  # each note is below its shade
    assert (top[:, 0] < top[:, 1]).all()
    assert len(np.unique(top[:, 0])) == 3


# -- long texts, jumps and search -------------------------------------------------------------------------------------


def said(browser, group):
    """What the output in a group of the tools says."""
    return browser.run(f"document.querySelector('#{group} output').value")


def press(browser, *keys):
    for key in keys:
        browser.press(key)
    browser.settle()


def typed(browser, box, text):
    """Type text into a box, as a person would."""
    browser.run(f"document.getElementById('{box}').select()")
    browser.call("Input.insertText", text=text)
    browser.settle()


def in_window(browser):
    """Whether the token that is shown is in the window, below the tools."""
    return browser.run("""(({ top, bottom }) => {
        const tools = document.getElementById("tools").getBoundingClientRect();
        return top >= tools.bottom && bottom <= innerHeight;
    })(document.querySelector("#text .shown").getBoundingClientRect())""")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A page of 300 sequences of 100 tokens."""
    path = tmp_path_factory.mktemp("pages") / "long.html"
    nll = np.random.default_rng(0).exponential(2, (300, 100))
    words = np.array([f" w{i}" for i in range(30_000)], object).reshape(nll.shape)
    words[::7, -1] = None
    words[250, 3:6] = " (a.", "b", ") İx"
    page.write_page(path, scores_of(nll), np.arange(30_000).reshape(nll.shape), tokens=words)
    return path, nll.reshape(-1), words.reshape(-1)


def test_browser_draws_what_is_near_the_window(browser, long):
    path, _, words = long
    browser.open(path)
    text = "document.getElementById('text').textContent"
    count = "document.querySelectorAll('#text i').length"
    whole = browser.run(text)
    assert "".join(word for word in words[:99]) in whole
    assert 100 <= browser.run(count) < 5000
    for _ in range(5):  # heights of what was never in the window are estimates
        browser.run("scrollTo(0, document.body.scrollHeight)")
        browser.settle()
    assert browser.run("document.querySelector('#text .part:last-of-type i') !== null")
    assert browser.run(count) < 10_000
    assert browser.run(text) == whole
    assert_quiet(browser, path)


def test_browser_jumps_to_the_worst_tokens(browser, long):
    path, nll, words = long
    order = np.argsort(-nll, kind="stable")
    browser.open(path)
    assert said(browser, "worst") == "\u2013 of 1,000"
    button = "document.querySelectorAll('#worst button')[%d].click()"
    for by, step in (1, 0), (1, 1), (1, 2), (0, 1), (0, 0), (0, 999):
        browser.run(button % by)
        browser.settle()
        assert said(browser, "worst") == f"{step + 1:,} of 1,000"
        at = order[step]
        assert f"\n#{at}\nsequence {at // 100} · position {at % 100}\n" in browser.run(CARD)
        assert in_window(browser)
        assert browser.run("location.hash") == f"#token-{at}"
    press(browser, "w")
    assert browser.run("document.activeElement.innerText") == words[order[0]]  # the key also takes the focus there
    press(browser, "w", "W")
    assert browser.run("document.activeElement.innerText") == words[order[0]]
    assert in_window(browser)
    assert_quiet(browser, path)


def test_browser_jumps_to_a_sequence_and_follows_links(browser, long):
    path, *_ = long
    browser.open(path)
    assert said(browser, "sequences") == "of 300"
    press(browser, "s")
    assert browser.run(NAME) == "Sequence"
    for wanted, position in ("217", "sequence 217"), ("3", "sequence 3"):
        typed(browser, "sequence", wanted)
        press(browser, "Enter")
        assert f"{position} · position 0\n" in browser.run(CARD)
        assert in_window(browser)
    typed(browser, "sequence", "300")
    press(browser, "Enter")
    assert browser.run("document.activeElement.ariaInvalid") == "true"
    browser.open(path, fragment="token-22204")
    assert "sequence 222 · position 4\n" in browser.run(CARD)
    assert in_window(browser)
    browser.open(path, fragment="token-99999999")
    assert browser.run(CARD) is None
    browser.open(path, fragment="sequence-250")
    top = browser.run("document.querySelector(':target').getBoundingClientRect().top")
    assert 0 <= top < 700


def test_browser_searches_the_whole_text(browser, long):
    path, _, words = long
    browser.open(path)
    press(browser, "/")
    assert browser.run(NAME) == "Search"
    for query, firsts in (
        ("W29998", [29_998]), ("w12", [i for i, word in enumerate(words) if word and word.startswith(" w12")]),
        ("1 w2", [i for i in range(30_000) if f"{i}".endswith("1") and f"{i + 1}".startswith("2")]),
        ("(A.b) İX", [25_003]), ("#799 ", [799]), (".*", []), ("\\", []), ("", None),
    ):  # fmt: skip
        typed(browser, "query", query)
        assert said(browser, "search") == ("" if firsts is None else f"\u2013 of {len(firsts):,}"), query
        assert browser.run("[...hits]")[:1] == (firsts or [])[:1]
        for step in range(min(3, len(firsts or []))):
            press(browser, "Enter")
            assert said(browser, "search") == f"{step + 1} of {len(firsts):,}"
            at = firsts[step]
            assert f"sequence {at // 100} · position {at % 100}\n" in browser.run(CARD)
            assert in_window(browser)
            assert "hit" in browser.run("document.querySelector('#text .shown').className")
    assert browser.run("document.querySelectorAll('.hit').length") == 0
    assert browser.run(NAME) == "Search"
    typed(browser, "query", "w29")
    press(browser, "Escape", "n", "n", "N")
    assert said(browser, "search").startswith("1 of ")
    assert_quiet(browser, path)


def test_browser_searches_across_the_parts_of_a_long_paragraph(browser, tmp_path):
    path, size = tmp_path / "page.html", 5000
    page.write_page(path, scores_of(np.ones(size)), np.arange(size), tokens=[f" w{i}" for i in range(size)])
    assert Reader(path.read_text("utf-8")).data["first"] == [0, 2000, 4000]
    browser.open(path)
    for at in 1999, 3999:
        typed(browser, "query", f"w{at} W{at + 1}")
        press(browser, "Enter")
        assert f"position {at}\n" in browser.run(CARD)
        assert browser.run("[...hits]") == [at, at + 1]


def test_browser_never_shows_the_bytes_of_a_vocabulary(browser, tmp_path):
    tokens = ["ĠIn", "Ċ", "ðŁĺ", "Ĥ", "Ġthe", None]
    vocabulary = ["ĠIn", "Ċ", "ðŁĺ", "Ĥ", "Ġthe", "ĠÃ©t", "č", "Ġ"]
    scores = scores_of(np.ones(6), top_ids=np.arange(12).reshape(6, 2), top_logprobs=np.full((6, 2), -1.0))
    path = tmp_path / "page.html"
    page.write_page(path, scores, np.arange(6), tokens=tokens, vocabulary=vocabulary)
    assert not re.search("[ĠĊðŁĺĤÃč]", path.read_text("utf-8"))
    browser.open(path)
    names, bdi = [], "#card header bdi, #card td:first-child bdi"
    for at in range(6):
        browser.point(*middle(browser, at))
        names.append(browser.run(f"[...document.querySelectorAll('{bdi}')].map((one) => one.innerText)"))
    shown = ["␣In", "↵", "\\xf0\\x9f\\x98", "\\x82", "␣the", "␣ét", "␍", "␣"]
    named = [*shown, "#8", "#9", "#10", "#11"]
    for at, (own, *others) in enumerate(names):
        assert own == (shown[at] if at < 5 else "#5")
        assert others[:2] == named[2 * at : 2 * at + 2]
    typed(browser, "query", " the")
    assert said(browser, "search") == "\u2013 of 1"
    assert browser.run("getComputedStyle(document.querySelector('#text .id')).fontFamily").endswith("monospace")


@pytest.mark.parametrize("size", [100_000])
@pytest.mark.slow
def test_browser_opens_a_long_text(size, browser, tmp_path, capsys):
    """Its time is printed, and not judged: machines differ."""
    path, ids = tmp_path / "page.html", np.random.default_rng(0).zipf(1.3, size) % 5000
    top = scores_of(
        np.random.default_rng(0).exponential(2, size), top_ids=np.stack([ids] * 5, 1),
        top_logprobs=-np.random.default_rng(0).exponential(3, (size, 5)),
    )  # fmt: skip
    page.write_page(path, top, ids, vocabulary=[f" w{i}" for i in range(5000)])
    start = time.perf_counter()
    browser.open(path)
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n{size:,} tokens: {path.stat().st_size / 1e6:.1f} MB, opened in {seconds:.2f} s")
    browser.point(*middle(browser, 3))
    assert "position 3\n" in browser.run(CARD)
    press(browser, "w")
    assert in_window(browser)
    assert_quiet(browser, path)


# -- people who do not see, print, or run no scripts ------------------------------------------------------------------


def accessible(browser):
    """Roles and names in the tree that screen readers use, without plain text."""
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    # Chromium 150 keeps the blank between a label and its box
    result = [(one["role"]["value"], one.get("name", {}).get("value", "").strip(), one)
             for one in nodes if not one["ignored"]]  # fmt: skip
    return [one for one in result if one[0] not in ("StaticText", "InlineTextBox", "generic", "none", "ListMarker")]


def test_browser_has_roles_and_names_for_screen_readers(browser, long):
    path, *_ = long
    browser.open(path)
    names = [(role, name) for role, name, _ in accessible(browser)]
    for one in (
        ("banner", ""), ("heading", "tokenloss"), ("table", "Colors"), ("rowheader", "nll from"),
        ("search", "Find tokens"), ("group", "Worst tokens"), ("button", "Next worst token"), ("textbox", "Sequence"),
        ("searchbox", "Search"), ("main", "Text"), ("heading", "sequence 0"), ("contentinfo", ""),
    ):  # fmt: skip
        assert one in names
    assert not [role for role, name in names if role in ("button", "textbox", "searchbox", "combobox") and not name]
    browser.run("focus(0)")
    (token,) = [one for role, name, one in accessible(browser) if role == "button" and name.strip() == "w0"]
    for words in "sequence 0 · position 0", "rank 3", "␣w7 #7":
        assert words in token["description"]["value"]
    press(browser, "Escape")
    assert "tooltip" not in {role for role, *_ in accessible(browser)}


def test_browser_prints_all_tokens_in_color(browser, tmp_path):
    path = tmp_path / "page.html"
    page.write_page(path, scores_of(np.ones((60, 100))), np.arange(6000).reshape(60, 100))
    browser.open(path)
    count = "document.querySelectorAll('#text i').length"
    browser.run(f"void addEventListener('afterprint', () => (window.printed = {count}))")
    browser.call("Page.printToPDF", printBackground=True)
    browser.settle()
    assert browser.run("window.printed") == 6000
    assert browser.run(count) < 6000


def names_when_drawn(browser, expected):
    """All names in the tree that screen readers use, once the expected one is among them.

    Parts of the text enter the tree when the first frame is drawn. `settle` waits for frames by a script.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        tree = browser.call("Accessibility.getFullAXTree")["nodes"]
        names = " ".join(one.get("name", {}).get("value", "") for one in tree)
        if expected in names:
            return names
        assert time.monotonic() < deadline, f"after {PATIENCE} s, {expected!r} is not in {names!r}"
        time.sleep(0.05)


def test_browser_without_scripts_shows_the_text(browser, long):
    path, _, words = long
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(path)
        shown = names_when_drawn(browser, "Without JavaScript, this page shows the numbers and the text")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "".join(words[:99]).strip() in shown
    assert "Next worst token" not in shown


@pytest.mark.slow
def test_browser_that_is_too_old_shows_the_text(browser, tmp_path):
    path = tmp_path / "page.html"
    page.write_page(path, scores_of(np.ones(2)), [0, 1], tokens=["to", " be"])
    old = browser.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    try:
        browser.open(path)
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", **old)
    shown = browser.run("document.body.innerText")
    assert "This browser cannot color the tokens: " in shown
    assert "to be" in shown
    assert "Worst tokens" not in shown
