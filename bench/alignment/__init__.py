"""How well images follow their prompts, measured with coloured shapes that can be read back exactly."""
