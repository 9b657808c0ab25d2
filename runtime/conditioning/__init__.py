"""Prompts to contexts, and what changes from evaluation to evaluation."""
