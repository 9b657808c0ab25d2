"""How a service holds up under load, and what it costs over a plain loop."""
