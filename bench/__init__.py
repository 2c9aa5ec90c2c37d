"""Measurements of the package, each a command; see README.md in this folder."""
