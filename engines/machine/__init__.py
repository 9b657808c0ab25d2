"""This machine: its processor and GPUs, the location of the user's cache, addresses and mapped memory."""
