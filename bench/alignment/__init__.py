"""How well images follow their prompts, measured on images of coloured shapes."""
