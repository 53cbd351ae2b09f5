"""Round the weights of a model to few bits, and store the logits of each of the models that come of it.

MODEL is any causal language model that transformers can load. BASE is what store_logits.py has stored of it: a .npz
file, or a folder of them. The folder OUT gets the same for each number of bits and each size of groups, with `logits`
in float16, and the ids and masks of BASE; with --models it gets the models, too. In each group of neighboring weights
the values become 2 ** BITS steps from the least to the greatest, which is the plainest way to quantize. Printed are the
arguments of `tokenloss compare` that name the files and sizes.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def round_weights(model: torch.nn.Module, bits: int, group: int) -> int:
    """Round the matrices of a model in place; the bytes that the rounded model takes."""
    size = 0
    for parameter in model.parameters():
        if parameter.ndim < 2:
            size += 2 * parameter.numel()  # of norms, which stay as they are, in float16
            continue
        groups = parameter.data.view(-1, group)
        least, greatest = groups.aminmax(dim=1, keepdim=True)
        step = ((greatest - least) / (2**bits - 1)).half().float().clamp(min=1e-7)
        least = least.half().float()
        groups.copy_(least + step * ((groups - least) / step).round().clamp(0, 2**bits - 1))
        size += (parameter.numel() * bits + 7) // 8 + 4 * len(groups)  # and two numbers in float16 for each group
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("base", metavar="BASE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5, 4, 3], help="default: 8 6 5 4 3")
    parser.add_argument("--group", type=int, nargs="+", default=[64, 16], help="weights in a group (default: 64 16)")
    parser.add_argument("--models", action="store_true", help="save the models, too, in OUT/models")
    args = parser.parse_args()
    is_folder = args.base.is_dir()
    for bits, group in itertools.product(args.bits, args.group):
        model, name = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32").eval(), f"Q{bits}g{group}"
        size, out = round_weights(model, bits, group), args.out / (name if is_folder else f"{name}.npz")
        for path in sorted(args.base.glob("*.npz")) if is_folder else [args.base]:
            with np.load(path) as base:
                held = {array: base[array] for array in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                logits = model(**{array: torch.from_numpy(values) for array, values in held.items()}).logits
            file = out / path.name if is_folder else out
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, logits=logits.half().numpy(), **held)
        print(f"{name}={out} --size {name}={size}")
        if args.models:
            model.save_pretrained(args.out / "models" / name)
            AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out / "models" / name)


if __name__ == "__main__":
    main()
