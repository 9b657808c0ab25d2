"""One UNet evaluation: buffers in one arena, bound calls, controls, and inspection."""
