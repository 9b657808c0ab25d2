"""Latency of every stage of an engine, alone and against PyTorch and the full UNet."""
