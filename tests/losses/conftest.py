from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_compiler(request: pytest.FixtureRequest) -> None:
    """The losses share one ``forward``, and torch compiles a function but so many times."""
    if "compile" in request.node.name:
        torch._dynamo.reset()
