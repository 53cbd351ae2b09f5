"""The summary as a JSON object."""

from __future__ import annotations

import json
import math
from typing import Any

from tokenloss._outputs._base import Output


class JsonObject(Output):
    """One JSON object on stdout."""

    option = "--json"
    help = "print one JSON object"
    writes_file = False

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        """Print the object; JSON has no nan and no infinities, so they become null."""
        print(json.dumps(_as_strict_json(summary), indent=2, allow_nan=False))


def _as_strict_json(value: Any) -> Any:
    """Value with None for each float that JSON cannot hold, and U+FFFD for each surrogate that is not in a pair."""
    if isinstance(value, dict):
        return {name: _as_strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_strict_json(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return None if isinstance(value, float) and not math.isfinite(value) else value
