"""Tokenizers' own files: the bytes that each id writes into a text, and the place of each token in it."""

from tokenloss.formats.tokenizers.aligned import AlignedText
from tokenloss.formats.tokenizers.reader import open_tokenizer, token_bytes, tokenizer_files
from tokenloss.formats.tokenizers.tokenizer import Tokenizer

__all__ = ["AlignedText", "Tokenizer", "open_tokenizer", "token_bytes", "tokenizer_files"]
