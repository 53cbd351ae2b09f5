"""torch's and JAX's ways to the mean cross-entropy of logits with one option of tokenloss's, as in `peers`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import Contender
from peers import Builders, Contenders, compiled, jitted, torch_on

IGNORED = -100
WEIGHTED = 1e-4  # what sums of 100,000 weights and losses leave of the digits if float32 numbers are added one by one
OF_TORCH = ("weight", "ignore_index", "label_smoothing")  # options that its function has, too


def loss_of(option: str, pick: Callable[[Any, Any], Any], module: Any, x: Any, targets: Any, value: Any) -> Any:
    """The formula, in functions that torch and JAX name alike."""
    if option == "softcap":
        x = value * module.tanh(x / value)
    if option == "logit_scale":
        x = value * x
    weights = value if option in ("sample_weight", "where") else None
    if option == "ignore_index":
        weights = targets != value
        targets = targets.clip(0)
    if option == "weight":
        weights = value[targets]
    logsumexp = module.logsumexp(x, 1)
    nll = logsumexp - pick(x, targets)
    if option == "z_loss":
        nll = nll + value * logsumexp**2
    if option == "label_smoothing":
        nll = (1 - value) * nll + value * (logsumexp - x.mean(1))
    return nll.mean() if weights is None else (nll * weights).sum() / weights.sum()


def with_torch(option: str, x: Any, targets: Any, value: Any) -> Contenders:
    """The function at once, where it has the option, then it and the formula compiled."""
    torch = torch_on(1)
    is_array = isinstance(value, np.ndarray)
    tensors = torch.from_numpy(x), torch.from_numpy(targets), *([torch.from_numpy(value)] if is_array else ())
    formula = partial(loss_of, option, lambda x, t: x.gather(1, t[:, None])[:, 0], torch)
    ways: dict[str, Callable[..., Any]] = {"formula": lambda x, t, v=value: formula(x, t, v)}
    if option in OF_TORCH:
        cross_entropy = torch.nn.functional.cross_entropy
        function = ways["cross_entropy"] = lambda x, t, v=value: cross_entropy(x, t, **{option: v})
        yield Contender("torch", lambda: function(*tensors), WEIGHTED)
    yield from compiled(ways, *tensors, tolerance=WEIGHTED)


def with_jax(option: str, x: Any, targets: Any, value: Any) -> Contenders:
    """The formula, compiled."""
    import jax
    from jax import numpy as jnp

    class Names:
        tanh, logsumexp = jnp.tanh, staticmethod(jax.nn.logsumexp)

    def pick(x: Any, targets: Any) -> Any:
        return jnp.take_along_axis(x, targets[:, None], 1)[:, 0]

    yield jitted("JAX", partial(loss_of, option, pick, Names), x, targets, value)


OPTIONS: Builders = {"torch": ("torch", with_torch), "JAX": ("jax", with_jax)}
