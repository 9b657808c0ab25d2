"""Long checks: damage, hostile inputs, interruptions and many images; docs/reliability.md has their results."""
