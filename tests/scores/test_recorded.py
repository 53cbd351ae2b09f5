"""No bit of any result changes by accident: the hashes of `recorded.py` are those of `data/recorded.txt`."""

import pytest
from recorded import LENGTHS, PATH, lines

from tokenloss._core import _core

BEST, *OTHERS = _core.backends()
CASES = [(BEST, size, layout) for size in LENGTHS for layout in ("c", "class_first_in_memory", "swapped_and_strided")]
CASES += [(backend, "short", "c") for backend in OTHERS[:-1]]  # the portable one is ten times as slow
CASES += [pytest.param(backend, "long", "c", marks=pytest.mark.slow) for backend in OTHERS]
CASES += [pytest.param(backend, "short", "c", marks=pytest.mark.slow) for backend in OTHERS[-1:]]


@pytest.mark.parametrize(("backend", "size", "layout"), CASES)
def test_bits_are_those_that_were_recorded(backend, size, layout, use_backend):
    use_backend(backend)
    recorded = set(PATH.read_text("ascii").splitlines())
    changed = sorted(set(lines(size, layout)) - recorded)
    assert not changed, f"{len(changed)} hashes are of other bits, the first of them:\n" + "\n".join(changed[:10])
