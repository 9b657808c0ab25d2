"""Memory and execution on the CPU and on NVIDIA GPUs."""
