"""Damage at random for tests: of bytes and of values of JSON, and bounds of what reading such a file may take."""

import contextlib
import os
import struct
import sys

from commands import at_most
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st

try:
    import resource
except ImportError:  # Windows
    resource = None

MORE = int(os.environ.get("TOKENLOSS_FUZZ_EXAMPLES", "0"))  # of files, not those of the other runs
MOST_BYTES = 64 << 20  # that are taken for a file of a few kB
MOST_SECONDS = 20

fuzzed = settings(
    max_examples=MORE or 30,
    derandomize=not MORE,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

LENGTHS = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([2**k + d for k in (7, 8, 15, 16, 20, 27, 31, 32, 40, 62, 63, 64, 100) for d in (-1, 0)]),
)
ANYTHING = st.recursive(
    st.one_of(
        LENGTHS, st.none(), st.booleans(), st.floats(), st.sampled_from(["", "F32", "<f4", "|O", "logits", "x\n"])
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=5,
)


@st.composite
def damages(draw):
    """A function that damages some bytes."""
    position, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    new = draw(
        st.one_of(
            st.binary(max_size=8),
            st.builds(struct.pack, st.just("<I"), st.integers(0, 2**32 - 1)),
            st.builds(lambda number: (number % 2**64).to_bytes(8, "little"), LENGTHS),
            st.builds(lambda number: (number % 2**32).to_bytes(4, "little"), LENGTHS),
            st.builds(lambda number: str(number).encode(), LENGTHS),
            st.sampled_from([b"[" * 3000, b"-" * 9000, b"(" * 300, b"9" * 5000, b"\xff" * 16, b"NaN", b"PK\x05\x06"]),
        )
    )
    how = draw(st.sampled_from(["overwrite", "overwrite", "overwrite", "insert", "delete", "end", "copy"]))

    def damage(data):
        at = int(position * len(data))
        if how == "overwrite":
            return data[:at] + new + data[at + len(new) :]
        if how == "insert":
            return data[:at] + new + data[at:]
        if how == "delete":
            return data[:at] + data[at + length :]
        return data[:at] if how == "end" else data[:at] + data[at // 2 : at // 2 + length] + data[at:]

    return damage


DAMAGES = st.lists(damages(), min_size=1, max_size=4)


def damaged(data, damages):
    """Apply damages to bytes."""
    for damage in damages:
        data = damage(data)
    return data


def places(value, path=()):
    """Paths to all values inside a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def changed(value, path, new):
    """A copy of a JSON value with `new` at this path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


@st.composite
def lies(draw, value):
    """A JSON value with other values at one or two paths."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))[1:]))
        new = draw(ANYTHING | LENGTHS | st.lists(LENGTHS, min_size=1, max_size=3))
        value = changed(value, path, new)
        assume(isinstance(value, dict))
    return value


def resident():
    """Peak memory of the process in bytes; 0 where the platform does not tell."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def bounded():
    """Fail where much time or memory is taken.

    Memory that is never written to does not count: codecs of Zarr reserve the size that a frame claims to have.
    """
    before = resident()
    with at_most(MOST_SECONDS):
        yield
        assert resident() - before < MOST_BYTES
