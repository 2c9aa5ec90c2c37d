"""What a person, or a tool, reads after a run."""
