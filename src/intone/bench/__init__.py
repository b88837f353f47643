"""Measurements anyone can repeat; each writes rows to bench/results."""
