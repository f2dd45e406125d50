"""The shipped configurations, found by name: ``mate/shapes`` is ``mate/shapes.yaml`` in here."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from itmkit.checks import did_you_mean
from itmkit.files import user_path


def config_names() -> list[str]:
    """Names of all shipped configurations, such as ``mate/shapes``, sorted."""
    folder = _folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in _paths(folder))


def config_path(name: str) -> Path:
    """Path of a configuration given by path, or by the name of a shipped one.

    Args:
        name: path of an existing file, or a name from :func:`config_names` (``.yaml`` may follow).

    Returns:
        The path; an existing file goes before a shipped configuration of the same name.

    Raises:
        FileNotFoundError: there is neither; the message lists the shipped names.

    Example:
        >>> config_path("mate/shape")
        Traceback (most recent call last):
        FileNotFoundError: config 'mate/shape' is neither a file nor a shipped configuration ...
    """
    path = user_path(name)
    if path.is_file():
        return path
    names = config_names()
    shipped = name.removesuffix(".yaml")
    if shipped in names:
        return _folder() / f"{shipped}.yaml"
    raise FileNotFoundError(
        f"config '{name}' is neither a file nor a shipped configuration ({', '.join(names)})"
        + did_you_mean(shipped, names)
    )


def _folder() -> Path:
    return Path(str(files(__name__)))


def _paths(folder: Path) -> list[Path]:
    return list(folder.rglob("*.yaml"))
