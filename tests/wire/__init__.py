"""The wire harness: two zones in two network namespaces, what crosses their link, and a search for planted values."""
