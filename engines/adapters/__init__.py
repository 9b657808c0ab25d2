"""LoRAs and textual inversions: read, matched with an engine's weights, and written as a derived engine directory."""
