"""Checks of a machine and of an engine directory, in plain language."""
