"""Image–text matching: the parts of a matcher, its losses, its metrics and whole systems."""

__version__ = "0.1.0"
