"""Nested options as a flat table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options by the names that a user types.

    Example:
        >>> model = {"class_path": "Tiny", "init_args": {"rate": 0.1}}
        >>> flat_options({"model": model, "trainer": {"max_epochs": 2, "devices": [0]}})
        {'model': 'Tiny', 'model.rate': 0.1, 'trainer.max_epochs': 2, 'trainer.devices': [0]}
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        _flatten(name, value, flat)
    return flat


def _flatten(name: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        value = {str(number): one for number, one in enumerate(value)}
    if not isinstance(value, Mapping):
        flat[name] = value
        return
    for key, one in value.items():
        same = key == "class_path" or (key == "init_args" and isinstance(one, Mapping))
        _flatten(name if same else f"{name}.{key}", one, flat)
