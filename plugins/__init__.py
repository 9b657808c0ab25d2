"""Operators of our own that run between the segments."""
