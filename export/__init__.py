"""Checkpoint to engine directory. PyTorch lives here and only here."""
