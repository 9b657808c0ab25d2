"""Checkpoints: from the hub, a folder, a single file, or built in; and which of them can be exported."""
