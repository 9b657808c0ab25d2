"""How well pictures follow their prompts, measured on pictures of coloured shapes."""
