"""What a generation is asked for: its fields, the rules they keep, and their JSON."""
