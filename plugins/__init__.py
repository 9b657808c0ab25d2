"""Operators that run between the segments, and their compiled GPU kernels."""
