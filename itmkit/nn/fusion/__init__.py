"""Fusion: both sides of a pair in one sequence, and the score read from it."""
