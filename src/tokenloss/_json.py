"""Figures as JSON can hold them."""

from __future__ import annotations

import math
from typing import Any


def as_strict_json(value: Any) -> Any:
    """Value with None for each float that JSON cannot hold, and U+FFFD for each surrogate that is not in a pair."""
    if isinstance(value, dict):
        return {name: as_strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_strict_json(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return None if isinstance(value, float) and not math.isfinite(value) else value
