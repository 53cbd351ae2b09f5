"""What `tokenloss score` gives sinks and writes of responses of servers: blocks, pages and plots."""

import math
import re

import clients
import numpy as np
import pytest
from browser import CARD, assert_quiet, middle
from clients import COMPLETIONS, chat
from html_pages import Reader

from tokenloss import evaluate, sinks
from tokenloss._output import drawing, loss_plot


@pytest.fixture
def completions(tmp_path):
    """Ten completions of vLLM in one file."""
    return clients.save(tmp_path / "completions.jsonl", *COMPLETIONS)


def test_blocks_tell_what_is_known(completions):
    class Kept(sinks.Sink):
        rows, top_k = "tokens", 3

        def __init__(self):
            self.blocks = []

        def write(self, block):
            self.blocks.append(block)

    sink = Kept()
    evaluate([completions], sinks=[sink])
    (block,) = sink.blocks
    names = [clients.references()[name] for name in COMPLETIONS]
    tops, columns = block.tops[""], block.columns
    assert tops["top_tokens"].shape == tops["top_ids"].shape == (len(columns["target"]), 3)
    assert np.array_equal(tops["top_ids"], np.concatenate([reference.top_ids[:, :3] for reference in names]))
    top = np.concatenate([reference.top_logprobs[:, :3] for reference in names]).astype(float)
    np.testing.assert_allclose(tops["top_logprobs"], top, atol=1e-5)
    assert "entropy" not in columns
    assert columns["is_prompt"].all()
    assert np.array_equal(columns["is_greedy_known"], columns["kept"])
    entry = clients.response(COMPLETIONS[0])["choices"][0]["prompt_logprobs"][1]
    texts = [item["decoded_token"] for item in sorted(entry.values(), key=lambda item: item["rank"])]
    assert tops["top_tokens"][1].tolist() == texts[:3]


def test_html_shows_each_response_and_its_alternatives_by_their_text(command, tmp_path):
    names = ["llama_cpp_python/completion_echo_bos_00.json", "llama_cpp_python/completion_echo_bos_01.json"]
    path, page = clients.save(tmp_path / "echo.jsonl", *names), tmp_path / "page.html"
    assert command("score", path, "--html", page)[0] == 0
    result = Reader(page.read_text("utf-8"))
    texts = [clients.response(name)["choices"][0]["logprobs"]["tokens"][:-1] for name in names]
    assert (result.paragraphs, [text for _, text in result.tokens]) == (2, [text for one in texts for text in one])
    data, (model,) = result.data, result.data["models"]
    tokens = [text for one in texts for text in one]
    assert result.named(data["target"]) == tokens
    assert set(data["class_id"]) == {None}
    assert "entropy" not in model
    assert not {0, -1} & {*model["rank"]}
    tops = clients.response(names[0])["choices"][0]["logprobs"]["top_logprobs"]
    best = max(tops[2], key=tops[2].get)
    first = 2 * model["k"]
    assert result.named(model["top"][first : first + 1]) == [best]
    assert model["chance"][first] == pytest.approx(100 * math.exp(tops[2][best]), rel=5e-3)
    assert result.places["sequence"] == [0] * len(texts[0]) + [1] * len(texts[1])
    assert result.places["position"] == [*range(len(texts[0])), *range(len(texts[1]))]
    assert result.anchors == ["sequence-0", "sequence-1"]


def test_html_without_what_is_not_known(command, tmp_path):
    path, page = clients.save_lines(tmp_path / "c.jsonl", chat(("a", -1.0), ("b", -2.0))), tmp_path / "page.html"
    assert command("score", path, "--html", page)[0] == 0
    result = Reader(page.read_text("utf-8"))
    (model,) = result.data["models"]
    assert (model["rank"], {*result.data["class_id"]}) == ([None] * 2, {None})
    assert set(model["top"]) == {-1}
    assert "greedy accuracy" not in result.texts["dt"]
    clients.save_lines(path, chat(("a", -1.0, [("a", -1.0), ("b", -2.0)]), ("b", -2.0)))
    assert command("score", path, "--html", page)[0] == 0
    assert "of 1 token where it is known" in Reader(page.read_text("utf-8")).text("small")


def test_html_of_a_token_without_text_and_class(command, tmp_path):
    path, page = clients.save(tmp_path / "c.json", "sglang/generate_last_class.json"), tmp_path / "page.html"
    assert command("score", path, "--html", page)[0] == 0
    result = Reader(page.read_text("utf-8"))
    assert None in result.data["class_text"]
    assert ["id", "\ufffd"] in [[looks[-1], text] for looks, text in result.tokens]


@pytest.mark.parametrize("name", ["vllm/completion_prompt_logprobs0.json", "vllm/rendered_echo_no_top.json"])
def test_plot_without_lists_does_not_take_own_tokens_for_the_likeliest(name, command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    given = {}
    monkeypatch.setattr(
        loss_plot, "draw_losses", lambda nll, **options: given.update(options) or drawing.empty_figure("", (1, 1))
    )
    assert command("score", clients.save(tmp_path / "c.json", name), "--plot", tmp_path / "p.png")[0] == 0
    assert "greedy_logprobs" not in given


def test_plot_leaves_out_where_the_likeliest_class_is_not_known(command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    given = {}
    monkeypatch.setattr(
        loss_plot, "draw_losses", lambda nll, **options: given.update(options) or drawing.empty_figure("", (1, 1))
    )
    best, odd = ("a", -0.5, [("a", -0.5), ("b", -2.0)]), ("a", -0.1, [("b", -0.5), ("c", -2.0)])
    path = clients.save_lines(tmp_path / "c.jsonl", chat(best, odd))
    assert command("score", path, "--plot", tmp_path / "p.png")[0] == 0
    assert given["greedy_logprobs"].tolist()[0] == -0.5
    assert np.isnan(given["greedy_logprobs"][1])


def test_browser_shows_responses_of_servers_as_far_as_they_are_known(browser, tmp_path):
    path = tmp_path / "responses.html"
    vllm, llama_cpp = "vllm/completion_00.json", "llama_cpp_python/completion_echo_bos_01.json"
    files = [clients.save(tmp_path / f"{i}.json", name) for i, name in enumerate([vllm, llama_cpp])]
    evaluate(files, sinks=[sinks.HtmlPage(path)])
    browser.open(path)
    known, unknown = clients.response(vllm), clients.response(llama_cpp)
    entry = known["choices"][0]["prompt_logprobs"][2]
    first = browser.run("(({ innerText, className }) => [innerText, className])(document.querySelector('#text i'))")
    assert first == [f"#{known['choices'][0]['prompt_token_ids'][0]}", "ignored id"]  # the server returns no text of it
    browser.point(*middle(browser, 2))
    card = browser.run(CARD)
    (own, first), *_ = entry.items()
    where = f"#{own}\n0.json · sequence 0 · position 2"
    for word in (
        where,
        f"rank\n{first['rank']}\n",
        f"{-first['logprob']:.5g} nats",
    ):
        assert word in card
    for i, other in entry.items():
        assert f"{other['decoded_token'].replace(' ', '␣')}\t#{i}\t" in card
    assert "entropy" not in card
    logprobs = unknown["choices"][0]["logprobs"]
    browser.point(*middle(browser, len(known["choices"][0]["prompt_logprobs"]) + 3))
    card = browser.run(CARD)
    assert card.startswith(logprobs["tokens"][3].replace(" ", "␣"))
    assert "\n1.json · sequence 0 · position 3\n" in card
    for text, logprob in logprobs["top_logprobs"][3].items():
        share = f"{100 * math.exp(logprob):.3g} %" if logprob > math.log(1e-4) else f"{math.exp(logprob):.2e}"[:4]
        assert re.search(re.escape(text.strip()) + r"\t+" + re.escape(share), card), (text, share, card)
    assert "-1" not in card
    assert "null" not in card
    assert_quiet(browser, path)


@pytest.mark.slow
def test_browser_marks_no_alternative_as_a_token_that_is_not_known(browser, tmp_path):
    path = tmp_path / "responses.html"
    meta = {"input_token_logprobs": [[None, 5, None], [-3.0, 0, None]]}  # class 0 may be the last one
    meta["input_top_logprobs"] = [None, [[-0.5, 7, None], [-1.5, 8, None]]]
    evaluate([clients.save_lines(tmp_path / "r.jsonl", {"meta_info": meta})], sinks=[sinks.HtmlPage(path)])
    browser.open(path)
    browser.point(*middle(browser, 1))
    assert browser.run("[...document.querySelectorAll('#card tr.target bdi')].map((name) => name.innerText)") == ["?"]
    assert browser.run("document.querySelectorAll('#card tr').length") == 3
