"""What a generation reports on request: energies and attention maps."""
