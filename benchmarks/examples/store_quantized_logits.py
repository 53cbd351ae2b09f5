"""Store the logits of a quantized model for the tokens of its base, for `tokenloss compare BASE OUT --shift`.

ENGINE is mlx (for models in the layout of mlx-lm) or exllamav3 (for exl3 models, on a GPU). MODEL is what it can load.
BASE is what store_logits.py has stored of the base: a .npz file, or a folder of them. OUT becomes the same, with
`logits` in float16, and the ids and masks of BASE. What transformers can load, such as GPTQ and AWQ, store_logits.py
stores itself.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np


def mlx(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """The logits of a text by mlx-lm, from its ids."""
    import mlx_lm
    from mlx import core

    model, _ = mlx_lm.load(path)
    return lambda ids: np.array(model(core.array(ids[np.newaxis])).astype(core.float32))[0]


def exllamav3(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """The logits of a text by ExLlamaV3, from its ids."""
    import torch
    from exllamav3 import Config, Model

    model = Model.from_config(Config.from_directory(path))
    model.load()

    def logits_of(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model.forward(torch.from_numpy(ids[np.newaxis]), {"attn_mode": "flash_attn_nc"})  # no cache
        return logits[0].float().cpu().numpy()

    return logits_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", metavar="ENGINE", choices=["mlx", "exllamav3"])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("base", metavar="BASE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    args = parser.parse_args()
    logits_of = {"mlx": mlx, "exllamav3": exllamav3}[args.engine](args.model)
    for path in sorted(args.base.glob("*.npz")) if args.base.is_dir() else [args.base]:
        with np.load(path) as base:
            ids, mask, logits = base["input_ids"], base["attention_mask"], np.zeros_like(base["logits"])
        for row, length in enumerate(mask.sum(1)):  # padding is on the right, and its logits are never read
            logits[row, :length] = logits_of(ids[row, :length])[:, : logits.shape[-1]]  # others are of no class
        out = args.out / path.name if args.base.is_dir() else args.out
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez(out, logits=logits, input_ids=ids, attention_mask=mask)


if __name__ == "__main__":
    main()
