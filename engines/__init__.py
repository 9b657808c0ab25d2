"""The engine directory and the inference backends that run it."""
