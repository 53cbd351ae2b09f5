"""Where tests find what they read."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DATA = TESTS / "data"
CLIENTS = DATA / "clients"  # responses of servers, and the figures of other tools
SAMPLE = DATA / "whisper-tiny-en.npz"  # logits of a real model
C_DRIVERS = TESTS / "c"
