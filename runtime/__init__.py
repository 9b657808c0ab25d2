"""From an engine directory to an image, without PyTorch."""
