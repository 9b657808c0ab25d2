"""Prepared components in the user's cache."""
