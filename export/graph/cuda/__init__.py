"""Graphs for ONNX Runtime's CUDA provider: operators fused, and images with channels last."""
