"""Checks of a machine and of an engine directory, reported in plain language."""
