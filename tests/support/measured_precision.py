"""A processor of any speed in half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from itmkit import precision


@pytest.fixture
def set_slowdown(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Let half precision take so many times as long as float32 on this processor."""

    def set_to(slowdown: float) -> None:
        seconds = iter([0.001, 0.001 * slowdown])
        monkeypatch.setattr(precision, "least_seconds", lambda work: next(seconds))
        precision.cpu_slowdown.cache_clear()

    yield set_to
    precision.cpu_slowdown.cache_clear()
