"""Pages as a parser reads them, comparisons for them, and text that would break a page if it were not escaped."""

import dataclasses
import json
from html.parser import HTMLParser

import numpy as np

from tokenloss import compare

NASTY = [
    "<script>alert(1)</script>", "</script>", "&amp;", "<!--", "-->", "\"'", "</p></main>",
    "<img src=x onerror=alert(2)>", "{title}", "\\u003c", "\x00\r", "\u202e", "\ud800", "", " ", "\n", "]]>", "%s",
]  # fmt: skip


class Reader(HTMLParser):
    """Reads a page and checks that every element is closed."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.stack, self.tokens, self.paragraphs, self.texts = [], [], 0, {}
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        if tag == "i":
            self.tokens.append([dict(attributes)["class"].split(), ""])
        self.paragraphs += tag == "p" and self.stack[-1] == "main"
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, text):
        if self.stack:
            self.texts.setdefault(self.stack[-1], []).append(text)
        if "main" in self.stack and self.stack[-1] == "i":
            self.tokens[-1][1] += text

    def text(self, tag):
        return "".join(self.texts.get(tag, []))

    @property
    def data(self):
        return json.loads(self.texts["script"][0])


def made_up(kl, **fields):
    """A comparison with these divergences."""
    kl = np.asarray(kl, np.float64)
    one = compare(np.zeros((*kl.shape, 2)), np.zeros((*kl.shape, 2)), np.zeros(kl.shape, int))
    return dataclasses.replace(one, kl=kl, **fields)
