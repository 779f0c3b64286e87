"""The ways of `attacks.ways_of_code`, each tried."""

from attacks import ways_of_code
from attacks.trying import limits, trials

test_nothing_raw_leaves_in_code_by = trials(ways_of_code)
test_what_is_not_stopped_is_said_to_be = limits(ways_of_code)
