"""Ranks that run their units as inputs arrive."""
