"""The ways of `attacks.ways_of_crossings`, each tried."""

from attacks import ways_of_crossings
from attacks.trying import limits, trials

test_nothing_raw_crosses_by = trials(ways_of_crossings)
test_what_is_not_stopped_is_said_to_be = limits(ways_of_crossings)
