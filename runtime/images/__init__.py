"""Input images, output images, and initial latents."""
