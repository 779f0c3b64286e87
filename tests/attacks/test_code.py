"""Ways through outbound code."""

from attacks import ways_of_code
from attacks.trying import trials


test_nothing_raw_leaves_in_code_by = trials(ways_of_code)
