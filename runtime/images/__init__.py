"""Images in and out, and their latents."""
