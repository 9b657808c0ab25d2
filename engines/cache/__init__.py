"""Prepared forms of components in the user's cache."""
