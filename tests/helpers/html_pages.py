"""Pages as a parser reads them, comparisons for them, and text that would break a page if it were not escaped."""

import base64
import dataclasses
import functools
import json
import zlib
from html.parser import HTMLParser

import numpy as np
from places import SAMPLE

from tokenloss import compare, token_scores
from tokenloss._scores.token_scores import COLUMNS
from tokenloss._statistics.ratio import interval_above_0
from tokenloss.results import Estimate, TokenScores

NASTY = [
    "<script>alert(1)</script>", "</script>", "&amp;", "<!--", "-->", "\"'", "</p></main>",
    "<img src=x onerror=alert(2)>", "{title}", "\\u003c", "\x00\r", "\u202e", "\ud800", "", " ", "\n", "]]>", "%s",
]  # fmt: skip


LOOKS = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "inf", "nan", "ignored", "c1", "c2",
         "c3", "c4", "c5"]  # fmt: skip


class Reader(HTMLParser):
    """Reads a page and checks that every element is closed."""

    VOID = ("meta", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.stack, self.paragraphs, self.texts, self.words, self.anchors = [], 0, {}, "", []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.paragraphs += tag == "p" and "main" in self.stack and attributes.get("class") != "on"
        if tag == "h2":
            self.anchors.append(attributes.get("id"))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, text):
        if self.stack:
            self.texts.setdefault(self.stack[-1], []).append(text)
        if "main" in self.stack and self.stack[-1] == "p":
            self.words += text

    def text(self, tag):
        return "".join(self.texts.get(tag, []))

    @functools.cached_property
    def data(self):
        """What the page knows of its tokens."""
        return json.loads(zlib.decompress(base64.b64decode(self.texts["script"][0])))

    @property
    def tokens(self):
        """The looks and the text of each token, cut from the text as JavaScript does, in units of UTF-16."""
        data, units, at, tokens = self.data, self.words.encode("utf-16-le"), 0, []
        for length, shade in zip(data["lengths"], data["models"][0]["shades"], strict=True):
            text = units[2 * at : 2 * (at + abs(length))].decode("utf-16-le")
            tokens.append([[LOOKS[int(shade, 36)], *["id"] * (length < 0)], text[:-1] if length < 0 else text])
            at += abs(length)
        assert 2 * at == len(units)
        return tokens

    def named(self, classes):
        """The texts of classes of these numbers, or their ids if they have none."""
        ids, texts = self.data["class_id"], self.data["class_text"]
        return [ids[one] if texts[one] is None else texts[one] for one in classes]

    def ids(self, classes):
        """The ids of classes of these numbers; -1 of none."""
        return [-1 if one < 0 else self.data["class_id"][one] for one in classes]

    @property
    def places(self):
        """Where each token is."""
        return {name: np.cumsum(steps).tolist() for name, steps in self.data["places"].items()}


def sample():
    """The sample of the tests: its scores, with five alternatives, targets and tokens."""
    with np.load(SAMPLE) as data:
        return token_scores(data["logits"], data["targets"], top_k=5), data["targets"], data["tokens"]


def scores_of(nll, **fields):
    """Scores with these losses; all else is made up."""
    nll = np.asarray(nll, np.float64)
    ids = np.zeros(nll.shape, np.int64)
    full = {name: np.zeros(nll.shape, column.dtype) for name, column in COLUMNS.items() if not column.is_top}
    full |= {"nll": nll, "entropy": nll / 2, "rank": ids + 3, "argmax": ids + 7, "kept": ids == 0}
    return TokenScores(**{**full, **fields})


def estimate(value, stderr, factor=2.0):
    """An estimate of values that are never below 0, whose interval reaches this many standard errors."""
    return Estimate(value, (stderr, interval_above_0(value, stderr, factor), "tokens"))


def made_up(kl, **fields):
    """A comparison with these divergences."""
    kl = np.asarray(kl, np.float64)
    one = compare(np.zeros((*kl.shape, 2)), np.zeros((*kl.shape, 2)), np.zeros(kl.shape, int))
    return dataclasses.replace(one, kl=kl, **fields)
