"""Optional reports of a generation: energies and attention maps."""
