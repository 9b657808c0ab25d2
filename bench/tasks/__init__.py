"""How well editing and inpainting work, measured with coloured shapes that can be read back exactly."""
