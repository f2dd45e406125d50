"""Attention between the tokens of an image and those of a caption."""
