"""Estimates: numbers with a standard error and a confidence interval."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


class HasErrors(Protocol):
    """An object with the errors of an estimate."""

    @property
    def stderr(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float]: ...
    @property
    def unit(self) -> str: ...


class Errors(NamedTuple):
    """The standard error of an estimate, its 95 % interval, and the unit that both treat as independent."""

    stderr: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    unit: str = ""


_UNKNOWN = Errors()


class Estimate(float):
    """A number with a standard error and a confidence interval; everywhere else, it behaves as a plain float.

    Results contain estimates; you do not need to create them. Arithmetic, `abs` and `round` return plain floats.

    Parameters
    ----------
    value : float
        The number.
    errors : tuple, object, or function that returns one
        Standard error, interval and unit, or an object with these attributes. A function is called at the first read.

    Examples
    --------
    >>> from tokenloss import LossMeter
    >>> meter = LossMeter()
    >>> meter.update([0.5, 1.5, 1.0, 1.2])
    >>> meter.loss
    1.05
    >>> round(meter.loss.stderr, 4), meter.loss.unit
    (0.2102, 'tokens')
    >>> low, high = meter.perplexity.interval
    >>> print(f"{meter.perplexity:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    2.858, 95 % interval 1.743 to 7.281
    """

    __slots__ = ("_errors",)
    __module__ = "tokenloss.results"

    _errors: Any

    def __new__(
        cls, value: float,
        errors: tuple[float, tuple[float, float], str] | HasErrors | Callable[[], HasErrors] = _UNKNOWN,
    ) -> Estimate:  # fmt: skip
        estimate = float.__new__(cls, value)
        estimate._errors = errors
        return estimate

    if TYPE_CHECKING:  # which lets type checkers accept ``estimate == 1``

        def __eq__(self, value: object, /) -> bool: ...
        def __hash__(self) -> int: ...

    def _known_errors(self) -> HasErrors:
        """The object with the errors."""
        errors: Any = self._errors
        if type(errors) is tuple or callable(errors):
            self._errors = errors = errors() if callable(errors) else Errors(*errors)
        return cast("HasErrors", errors)

    def _all_errors(self) -> tuple[float, tuple[float, float], str]:
        """The standard error, the interval and the unit."""
        errors = self._known_errors()
        return errors.stderr, errors.interval, errors.unit

    @property
    def stderr(self) -> float:
        """The standard error; nan if it is unknown."""
        return self._known_errors().stderr

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the 95 % confidence interval; nan if they are unknown."""
        return self._known_errors().interval

    @property
    def unit(self) -> str:
        """The units that the error and the interval treat as independent: "tokens", "sequences", "documents" and so on.

        It is "" if they are unknown.
        """
        return self._known_errors().unit

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Give NumPy a plain float, so that ``float32_array * estimate`` stays float32."""
        plain = (float(one) if isinstance(one, Estimate) else one for one in inputs)
        return getattr(ufunc, method)(*plain, **options)

    def __pow__(self, other: Any, mod: None = None) -> Any:
        """The power of a plain float."""
        return pow(float(self), other, mod)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the number and its errors."""
        return Estimate, (float(self), self._all_errors())


def _as_float(compute: Callable[[Any, Any], Any]) -> Any:
    """The operator of a plain float; the class's own would also treat NumPy's float64 as a plain float."""
    return lambda self, other: compute(float(self), other)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "lt", "le", "eq", "ne", "gt", "ge"):
    setattr(Estimate, f"__{_name}__", _as_float(vars(operator)[_name]))
