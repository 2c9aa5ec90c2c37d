"""Plans: which rank owns and computes which rows of every layer."""
