"""Refinement: image and caption changed by each other before they are compared."""
