"""Responses of servers: one reader for all layouts of JSON."""

from tokenloss.formats.responses.reader import PARTS_OF_RESPONSE as PARTS_OF_RESPONSE
from tokenloss.formats.responses.reader import Failed as Failed
from tokenloss.formats.responses.reader import Response as Response
from tokenloss.formats.responses.reader import Responses as Responses
from tokenloss.formats.responses.reader import each_file as each_file
from tokenloss.formats.responses.reader import open_responses as open_responses
from tokenloss.formats.responses.reader import refuse_without_number as refuse_without_number
from tokenloss.formats.responses.reader import response_of as response_of
