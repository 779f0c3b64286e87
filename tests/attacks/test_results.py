"""The ways of `attacks.ways_of_results`, each tried."""

from attacks import ways_of_results
from attacks.trying import limits, trials

test_nothing_hostile_comes_in_by = trials(ways_of_results)
test_what_is_not_stopped_is_said_to_be = limits(ways_of_results)
