"""From initial latents to final ones: scheduler tables and the samplers."""
