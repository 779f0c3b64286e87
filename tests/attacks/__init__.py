"""Ways to carry raw data over the border, each tried; see `attacks.ways` for the list."""
