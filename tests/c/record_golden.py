"""Write golden.txt anew: python tests/c/record_golden.py [compiler].

Only where results of the kernels are meant to change, or where a new quantity is hashed: CHANGELOG.md then says which
results change and why, and the diff of golden.txt shows that no others do.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from test_kernels import GOLDEN, run_driver


def main(compiler: str = "cc") -> None:
    """Hash the results of every backend of this machine; write them if all agree."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "driver"
        where.mkdir()
        result = run_driver(compiler, where, flags="-O2")
    scalar, portable = result.pop("scalar_math"), result["portable"]
    for backend, hashes in result.items():
        differing = [quantity for quantity in portable if hashes[quantity] != portable[quantity]]
        if differing:
            raise SystemExit(f"{backend} differs from portable: {', '.join(differing)}")
    lines = [f"backend {quantity} {value}" for quantity, value in portable.items()]
    lines += [f"scalar_math {quantity} {value}" for quantity, value in scalar.items()]
    GOLDEN.write_text("\n".join(lines) + "\n")
    print(f"{GOLDEN.name}: {len(lines)} hashes, the same on {', '.join(result)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
