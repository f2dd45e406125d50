"""Losses of itmkit in the trainers of other libraries."""
