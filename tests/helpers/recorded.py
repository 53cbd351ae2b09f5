"""Hashes of the bits of every public function's results, by size, dtype and kind of rows.

`python tests/helpers/recorded.py` writes them to `data/recorded.txt` anew. That is right only where a change is meant
to change bits, and its commit says which and why.

Inputs are made of integers and exact operations alone, so that they are the same on every machine and with every NumPy.
Perplexities are left out, since the C library computes their exponential, and so are products of more than 24
positions, which the BLAS computes.
"""

import hashlib

import ml_dtypes
import numpy as np
from arrays import LAYOUTS, OPTIONS
from made_numbers import numbers
from places import DATA

import tokenloss

PATH = DATA / "recorded.txt"
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
ROWS = 5
FURTHER = ("reverse_kl", "js", "tv", "hellinger")
LENGTHS = {"short": (2, 100, 1100), "long": (5000,)}  # long rows have more than one block


def plain(shape, seed):
    """Numbers between -16 and 16."""
    return numbers(int(np.prod(shape)), seed).reshape(shape)


def with_leader(shape, seed):
    """Rows of log-probabilities, nearly, in which one class outweighs the others."""
    rows = plain(shape, seed) - 64
    rows[:, shape[1] // 3] = 2.0**-20
    return rows


def with_specials(shape, seed):
    """Rows of which some hold nan, infinities and a great many -inf."""
    rows = plain(shape, seed)
    rows[0, -1], rows[1, 0], rows[2, ::2] = np.nan, np.inf, -np.inf
    return rows


# by name; those of rows far from 0 do not fit float16
KINDS = {
    "plain": plain,
    "near": lambda shape, seed: plain(shape, seed) * 2.0**-12,
    "wide": lambda shape, seed: plain(shape, seed) * 2.0 ** (np.arange(shape[1]) % 12),
    "leader": with_leader,
    "specials": with_specials,
    "far": lambda shape, seed: 2.0**20 + plain(shape, seed),
}


def quantities(logits, others, length):
    """The results of every function, named by function, options and quantity."""
    ids, where = np.arange(ROWS) * 7 % length, np.arange(ROWS) != 3
    ignored = np.where(where, ids, -100)
    weight = (np.arange(length) % 5 + 1) / 4
    soft = (np.arange(ROWS * length) % 3).reshape(ROWS, length) / 4
    one_hot = np.zeros((ROWS, length), np.int8)
    one_hot[range(ROWS), ids] = 1
    probs, log_probs = np.minimum(abs(others) / 16, 1).astype(others.dtype), -abs(others)
    yield "logsumexp", tokenloss.logsumexp(logits)
    yield "softmax", tokenloss.softmax(logits)
    yield "log_softmax", tokenloss.log_softmax(logits)
    yield "kl_divergence", tokenloss.kl_divergence(logits, others, reduction="none")
    for name, targets in (("ids", ignored), ("one-hot", one_hot), ("soft", soft)):
        keep = {"where": where, "reduction": "none"}
        yield f"cross_entropy_loss {name}", tokenloss.cross_entropy_loss(targets, probs, weight=weight, **keep)
        yield f"nll_loss {name}", tokenloss.nll_loss(log_probs, targets, weight=weight, **keep)
        for reduction in ("mean", "sum"):
            loss = tokenloss.cross_entropy(logits, targets, weight=weight, reduction=reduction)
            yield f"cross_entropy {name} {reduction}", loss
        for option, values in OPTIONS.items():
            options = keep | values | ({"weight": weight} if option == "everything" else {})
            loss, gradient = tokenloss.cross_entropy_and_grad(logits, targets, **options)
            yield f"cross_entropy {name} {option}", tokenloss.cross_entropy(logits, targets, **options)
            yield f"cross_entropy_and_grad {name} {option} loss", loss
            yield f"cross_entropy_and_grad {name} {option} gradient", gradient
    for option in ("plain", "scaled_and_capped"):
        scores = tokenloss.token_scores(logits, ignored, top_k=min(5, length), **OPTIONS[option])
        for field, values in vars(scores).items():
            yield f"token_scores {option} {field}", values
        class_ids = np.stack([ids, ids[::-1] // 2, np.full(ROWS, length - 1), ids], -1)
        log_probs = tokenloss.class_log_probs(logits, class_ids, where=where, **OPTIONS[option])
        yield f"class_log_probs {option}", log_probs
    comparison = tokenloss.compare(logits, others, ignored)
    for field in ("nll", "base_nll", "kl", "delta_p", "is_same_top", "kept", "base_top_p"):
        yield f"compare {field}", getattr(comparison, field)
    for name, values in (
        tokenloss.kl_divergence(logits, others, divergences=FURTHER, reduction="none")._asdict().items()
    ):
        yield f"divergences {name}", values
    probs, other_probs = tokenloss.softmax(others), tokenloss.softmax(others[::-1])
    both = tokenloss.kl_divergence(probs, other_probs, kind="probs", divergences=FURTHER, reduction="none")
    for name, values in both._asdict().items():
        yield f"divergences probs {name}", values
    yield "kl_divergence probs", tokenloss.kl_divergence(probs, other_probs, kind="probs", reduction="none")
    for field in ("nll", "entropy", "logsumexp"):
        yield f"token_scores probs {field}", getattr(tokenloss.token_scores(probs, ids, kind="probs"), field)
    hidden, matrix = others[:, : min(64, length)], plain((300, min(64, length)), 99).astype(others.dtype)
    yield "linear_cross_entropy ids", tokenloss.linear_cross_entropy(hidden, matrix, ids, reduction="none")
    scores = tokenloss.linear_token_scores(hidden, matrix, ids, lm_head_bias=np.arange(300.0) / 64, top_k=5)
    for field, values in vars(scores).items():
        yield f"linear_token_scores {field}", values
    models, bias = (hidden, matrix, hidden[::-1], matrix), np.arange(300.0) / 64
    yield "linear_kl_divergence", tokenloss.linear_kl_divergence(*models, base_lm_head_bias=bias, reduction="none")
    yield "linear_compare kl", tokenloss.linear_compare(*models, ids, softcap=30.0).kl
    result = tokenloss.linear_kl_divergence(*models, softcap=30.0, divergences=FURTHER, reduction="none")
    for name, values in result._asdict().items():
        yield f"linear_divergences {name}", values
    meter = tokenloss.LossMeter()
    meter.update(tokenloss.token_scores(logits, ignored))
    for statistic in ("count", "total", "loss"):
        yield f"LossMeter {statistic}", getattr(meter, statistic)
    yield "LossMeter stderr", meter.loss.stderr


def bytes_of(values):
    """The bits of numbers in float64, where all nans are alike."""
    values = np.array(values).astype(np.float64)
    values[np.isnan(values)] = np.nan
    return values.astype("<f8").tobytes()


def lines(size, layout="c"):
    """A line for each dtype, kind of rows and function, with its hash over all quantities and lengths of a size."""
    for dtype_name, dtype in DTYPES.items():
        for kind, make in KINDS.items():
            if (kind == "far" and dtype_name == "float16") or (kind in ("near", "wide") and size == "long"):
                continue
            hashes = {}
            for length in LENGTHS[size]:
                logits, others = make((ROWS, length), 1).astype(dtype), plain((ROWS, length), 10**6).astype(dtype)
                for name, values in quantities(LAYOUTS[layout](logits), others, length):
                    of_function = hashes.setdefault(name.partition(" ")[0], hashlib.sha256())
                    of_function.update(name.encode() + bytes_of(values))
            for function, of_function in hashes.items():
                yield f"{size} {dtype_name} {kind} {function} {of_function.hexdigest()[:16]}"


if __name__ == "__main__":
    PATH.write_text("".join(f"{line}\n" for size in LENGTHS for line in lines(size)), encoding="ascii")
