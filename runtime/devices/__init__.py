"""Where buffers live and how work is replayed: the CPU, and NVIDIA GPUs."""
