"""Responses of servers: one reader of all layouts of JSON."""

from tokenloss.formats.responses.reader import (
    PARTS_OF_RESPONSE,
    Failed,
    Response,
    Responses,
    ResponsesFile,
    open_responses,
    refuse_without_number,
)

__all__ = [
    "PARTS_OF_RESPONSE",
    "Failed",
    "Response",
    "Responses",
    "ResponsesFile",
    "open_responses",
    "refuse_without_number",
]
