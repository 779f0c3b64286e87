"""The ways of `attacks.ways_of_parameters`, each tried."""

from attacks import ways_of_parameters
from attacks.trying import limits, trials

test_nothing_raw_leaves_in_parameters_by = trials(ways_of_parameters)
test_what_is_not_stopped_is_said_to_be = limits(ways_of_parameters)
