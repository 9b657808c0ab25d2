"""The checks; one module each, with `run(options) -> dict`."""
