"""Features of photos and captions by frozen models, to disk."""

from itmkit.extraction.to_disk import extract_to_disk

__all__ = ["extract_to_disk"]
