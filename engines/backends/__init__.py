"""Inference libraries behind one interface, one module each."""
