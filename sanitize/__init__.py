"""A hybrid GPU compute fabric for regulated data, on Ray."""
