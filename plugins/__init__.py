"""The operators that run between segments, and their compiled GPU kernels."""
