"""Prints by how many bytes the first call of one contender of a projection raises the peak of this process's memory.

Libraries have been warmed up by a small case before: what they allocate once is no call's.

    python benchmarks/fresh_process.py bfloat16 1024x2048x51864 2 tokenloss
"""

from __future__ import annotations

import json
import sys

import harness
from cases import linear


def main() -> None:
    """Warm up, measure, print."""
    dtype, label, workers, name = sys.argv[1:]
    *sizes, classes = map(int, label.split("x"))
    for some in (classes // 16, classes):
        case = linear(dtype, (*sizes, some), int(workers), settle=0)
        contender = next(contender for contender in case.contenders if contender.name == name)
        if some < classes:
            contender.call()
    print(json.dumps(harness.extra_memory(contender)))


if __name__ == "__main__":
    main()
