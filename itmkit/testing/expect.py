"""How a check says which law is broken."""

from __future__ import annotations

LARGEST_GRADIENT = 1e6


def expect(holds: bool, law: str) -> None:
    """Raise an ``AssertionError`` with the law unless it holds."""
    if not holds:
        raise AssertionError(law)
