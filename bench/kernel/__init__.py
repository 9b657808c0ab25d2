"""The GPU kernels of energy attention against PyTorch, layer by layer."""
