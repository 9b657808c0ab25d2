"""Compiled GPU kernels: the binaries, and how to launch them."""
