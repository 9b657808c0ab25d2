"""This machine: its processor and GPUs, where the user's cache lies, addresses and mapped memory."""
