"""Everything that needs an NVIDIA GPU, in one run with one result. Part of the source tree, not of the wheel."""
