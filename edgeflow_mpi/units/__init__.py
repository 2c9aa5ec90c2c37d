"""Execution-unit tables: compiled from a plan, verified, readable as text."""
