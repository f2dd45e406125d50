"""The shipped configurations, found by name and put together of parts.

``mate/shapes`` is ``mate/shapes.yaml`` in here. Its ``bases`` name what it starts from: parts of a
system, of a dataset, or another configuration. Files of a user may have ``bases`` too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from itmkit.checks import InputError, did_you_mean
from itmkit.files import user_path

PARTS = "parts"


def config_names() -> list[str]:
    """Names of all shipped configurations, such as ``mate/shapes``, sorted."""
    return sorted(name for name in _shipped() if not name.startswith(f"{PARTS}/"))


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
    shipped = name.removesuffix(".yaml")
    if shipped in (found := _shipped()):
        return found[shipped]
    names = config_names()
    raise FileNotFoundError(
        f"config '{name}' is neither a file nor a shipped configuration ({', '.join(names)})"
        + did_you_mean(shipped, names)
    )


def load_config(name: str | Path) -> dict[str, Any]:
    """A configuration, merged with its ``bases``.

    The bases are merged in their order, and the file itself last, see :func:`merge`; a file that
    is a base of several comes once, where it is first. Values that follow from others
    (:mod:`itmkit.configs.agreement`) are not filled in yet.

    Args:
        name: path of a file, or a name from :func:`config_names`.

    Returns:
        Sections by name, without ``bases``.

    Raises:
        FileNotFoundError: it, or one of its bases, is not there.
        InputError: a file is not YAML in UTF-8 with sections, or its bases lead back to itself.

    Example:
        >>> sorted(load_config("mate/shapes")["trainer"].items())
        [('gradient_clip_val', 2.0), ('log_every_n_steps', 20), ('max_steps', 600)]
    """
    found: dict[Path, dict[str, Any]] = {}
    _collect(config_path(str(name)), found, ())
    return reduce(merge, found.values(), {})


def merge(
    below: Mapping[str, Any], above: Mapping[str, Any], *, sections: bool = True
) -> dict[str, Any]:
    """One configuration over another; neither is changed.

    Sections, and the arguments of classes, are merged key by key. A class takes the place of
    another one together with its arguments. All else, such as a list, is taken from ``above``.

    Args:
        below: sections, or ``{"class_path": …, "init_args": …}``.
        above: the same; what it has wins.
        sections: whether the values are sections, which are merged, and not arguments.

    Raises:
        InputError: an argument of a class is outside of its ``init_args``.

    Example:
        >>> adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1, "eps": 1e-6}}
        >>> merge(adam, {"init_args": {"lr": 0.2}})
        {'class_path': 'torch.optim.Adam', 'init_args': {'lr': 0.2, 'eps': 1e-06}}
        >>> merge(adam, {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2}})
        {'class_path': 'torch.optim.SGD', 'init_args': {'lr': 0.2}}
    """
    own, old = above.get("class_path"), below.get("class_path")
    if own is not None and old is not None and not _is_same_class(own, old):
        return dict(above)
    result = {**({"class_path": own} if own is not None else {}), **below}
    for key, value in above.items():
        if key == "class_path" and old is not None:
            value = max(own, old, key=len)  # the path, where the other is the name alone
        there = result.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            if key != "init_args":
                _check_places(key, {**there, **value})
            of_class = value and value.keys() <= {"class_path", "init_args"}
            if sections or of_class or key == "init_args":
                value = merge(there, value, sections=False)
        result[key] = value
    return result


def _check_places(name: str, value: Mapping[str, Any]) -> None:
    of_class = ("class_path", "init_args", "dict_kwargs")
    outside = [key for key in value if key not in of_class]
    if outside and len(outside) < len(value):
        raise InputError(f"{name} has {outside[0]!r} outside of init_args; expected it inside")


def _is_same_class(path: str, other: str) -> bool:
    """Whether two class paths are equal, or one of them is the name of the other alone."""
    short = "." not in path or "." not in other
    return path == other or (short and path.rpartition(".")[2] == other.rpartition(".")[2])


def describe(name: str) -> tuple[str, str]:
    """The first line of a configuration's comment, and what was measured with it, if anything.

    Example:
        >>> describe("mate/shapes")[0]
        'MATE on the built-in shapes: pixels and sentences, no download, minutes on two CPU cores.'
    """
    lines = comment(name).splitlines()
    measured = (line.removeprefix("Measured: ") for line in lines if line.startswith("Measured: "))
    return (lines[0] if lines else ""), next(measured, "")


def comment(name: str) -> str:
    """The comment that a configuration starts with, without its marks."""
    lines = []
    for line in config_path(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def _shipped() -> dict[str, Path]:
    folder = Path(str(files(__name__)))
    paths = folder.rglob("*.yaml")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _collect(path: Path, found: dict[Path, dict[str, Any]], through: tuple[Path, ...]) -> None:
    """Add the bases of a file and then the file itself, each where it comes first."""
    if path in through:
        raise InputError(f"config '{path}' is among its own bases")
    if path in found:
        return
    content = _read(path)
    bases = content.pop("bases", [])
    if not isinstance(bases, list):
        raise InputError(f"config '{path}': bases is {bases!r}; expected a list of configurations")
    for base in bases:
        _collect(config_path(str(base)), found, (*through, path))
    found[path] = content


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"config '{path}' is not text in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise InputError(f"config '{path}'{where}: {problem}") from error
    if not isinstance(content, dict):
        held = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise InputError(f"config '{path}' {held}; expected model, data, trainer: …")
    return {str(key): value for key, value in content.items()}
