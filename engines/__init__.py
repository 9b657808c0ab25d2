"""The engine directory: its contract, the backends that run it, and the cache of prepared components."""
