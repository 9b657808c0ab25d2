"""Benchmarks: latency, startup, GPU kernels, and image quality on a model whose images can be read exactly."""
