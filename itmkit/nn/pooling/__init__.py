"""Pooling: which tokens and channels of one side count, and how much."""
