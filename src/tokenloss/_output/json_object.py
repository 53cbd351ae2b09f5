"""The summary as a JSON object."""

from __future__ import annotations

import json
from typing import Any

from tokenloss._core.text import as_strict_json
from tokenloss._evaluation.sink import Sink


class JsonObject(Sink):
    """One JSON object on stdout."""

    option = "--json"
    help = "print one JSON object"
    writes_file = False

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        """Print the object; JSON has no nan and no infinities, so they become null."""
        print(json.dumps(as_strict_json(summary), indent=2, allow_nan=False))
