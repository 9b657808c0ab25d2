"""From prompts to contexts, and the values that change from evaluation to evaluation."""
