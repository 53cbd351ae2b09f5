"""First lines of programs for `run_python` (memory that cannot be read, a measure of allocations), and PATIENCE."""

import os
import sys

# how many times longer than usual a test waits before it gives up: emulated machines are slow
PATIENCE = float(os.environ.get("PATIENCE", "1"))

FORBIDDEN_PAGES = """
import ctypes, mmap
import numpy as np
from tokenloss import cross_entropy, cross_entropy_loss, logsumexp, nll_loss

PAGE = mmap.PAGESIZE
memory = mmap.mmap(-1, 3 * PAGE)
bytes_ = np.frombuffer(memory, np.uint8)
libc = ctypes.CDLL(None, use_errno=True)


def forbid(page):
    address = ctypes.c_void_p(bytes_.ctypes.data + page * PAGE)
    assert libc.mprotect(address, ctypes.c_size_t(PAGE), 0) == 0
"""


def needs_mprotect(test):
    """Skip a test where no page can be made unreadable."""
    import pytest  # here, as programs that import this module would wait for it

    return pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mprotect")(test)


MEASURED = """
import resource, sys, tracemalloc
import ml_dtypes
import numpy as np
from tokenloss import LossMeter, cross_entropy, cross_entropy_loss, kl_divergence
from tokenloss import linear_cross_entropy, logsumexp, nll_loss

UNIT = 1 if sys.platform == "darwin" else 1024
WORKERS = 2
rng = np.random.default_rng(0)


class Exporter:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return (1, 0)


def floats(*shape, dtype=np.float32):
    return rng.standard_normal(shape, dtype)


def halves(*shape):
    return rng.integers(0x3C00, 0x3D00, shape, np.uint16).view(ml_dtypes.bfloat16)


def measure(what, call, first=None, most=WORKERS << 20):
    (first or call)()  # starts threads and touches pages
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * UNIT
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert allocated < most, f"{what}: {allocated} bytes were allocated"
    assert grown < most, f"{what}: the process grew by {grown} bytes"
"""


# A call that is large enough for several threads (8 MB).
LARGE = """
import os, sys, threading, time
import numpy as np
from tokenloss import LossMeter, class_log_probs, cross_entropy, cross_entropy_loss, logsumexp, nll_loss, show_config

logits = 3 * np.sin(np.arange(500 * 4096, dtype=np.float32)).reshape(500, 4096)  # random ones take longer
targets = np.arange(500) * 4093 % 4096


def large(workers=None):
    return cross_entropy(logits, targets, workers=workers)
"""
