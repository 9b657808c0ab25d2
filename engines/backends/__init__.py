"""Inference libraries behind one protocol, one module each."""
