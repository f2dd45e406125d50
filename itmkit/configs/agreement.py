"""Values of a configuration that must agree: written once, filled in elsewhere, checked if twice.

A configuration is plain dictionaries here. Places in it are written as options are, such as
``model.text_encoder.dim``, without ``init_args``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pydoc import ErrorDuringImport, locate
from typing import Any

from itmkit.checks import InputError
from itmkit.files import read_json, user_path

#: Groups of values that must be equal. Each line of a group is one value; of several places, the
#: first that is given counts, and the last that its class has is where a missing value is filled
#: in. What a function gives, such as ``length(x)``, is compared and never filled in.
AGREEING: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        (
            "model.image_encoder.dim",
            "model.image_encoder.encoder.dim",
            "model.image_encoder.projection.dim",
        ),
        ("model.text_encoder.dim", "model.text_encoder.encoder.dim"),
        ("model.fusion.dim",),
        ("model.matching_head.dim",),
    ),
    (
        ("length(model.image_encoder.out_indices)", "model.image_encoder.levels"),
        ("length(model.text_encoder.layers)", "model.text_encoder.levels"),
    ),
    (
        ("model.image_encoder.image_size",),
        ("data.dataset.preprocessing.size", "data.dataset.image_size"),
    ),
    (
        ("model.image_encoder.in_dim", "model.image_encoder.encoder.in_dim"),
        (
            "width(data.dataset.features)",
            "width(data.dataset.root)",
            "channels(data.image_model)",
        ),
    ),
    (
        ("model.text_encoder.in_dim", "model.text_encoder.encoder.in_dim"),
        ("token_width(data.text_features)", "hidden_size(data.text_model)"),
    ),
    (
        (
            "model.text_encoder.name_or_path",
            "model.text_encoder.encoder.name_or_path",
            "model.name_or_path",
        ),
        ("data.tokenizer.name_or_path",),
    ),
    (
        ("model.views",),
        ("data.caption_views",),
        ("model.triplet.group_size",),
        ("model.loss.group_size",),
    ),
)
#: what is not filled in where something else is given that takes its place
INSTEAD = {"name_or_path": "config", "image_size": "preprocessing"}
#: class of an argument that is made where a value needs it
MADE = {"data.tokenizer": "itmkit.data.TransformersTokenizer"}
#: where classes are that a configuration names without their module
PLACES = """
    itmkit.systems itmkit.nn itmkit.losses itmkit.data itmkit.callbacks torch.optim
    torch.optim.lr_scheduler lightning.pytorch.callbacks lightning.pytorch.loggers
""".split()


def missing_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that follow from others, by the option that they are missing in.

    Args:
        config: sections by name, with what is given alone.

    Raises:
        InputError: two values that must agree are given and differ.

    Example:
        >>> encoders = {"image_encoder": {"class_path": "itmkit.nn.RegionProjection",
        ...     "init_args": {"dim": 64}}, "text_encoder": {"class_path": "itmkit.nn.BiGRU"}}
        >>> model = {"class_path": "itmkit.systems.TVRN", "init_args": encoders}
        >>> missing_values({"model": model})
        {'model.text_encoder.dim': 64}
    """
    found: dict[str, Any] = {}
    for group in AGREEING:
        given = [_given(config, places) for places in group]
        there = [one for one in given if one is not None]
        if not there:
            continue
        (first, value), *others = there
        for other, its in others:
            if its != value:
                raise InputError(
                    f"{_described(first)} is {value!r} and {_described(other)} {its!r}; expected "
                    "the same value"
                )
        for places, own in zip(group, given, strict=True):
            if own is None:
                filled = (_filled(config, place, value) for place in reversed(places))
                found |= next(filter(None, filled), {})
    return found


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its :func:`missing_values`."""
    for option, value in missing_values(config).items():
        config = with_option(config, option, value)
    return dict(config)


def with_option(config: Mapping[str, Any], option: str, value: Any) -> dict[str, Any]:
    """A configuration with one more option, as the command line would set it.

    Args:
        config: sections by name.
        option: its place, with or without ``init_args``; a place in a list is one in its last item,
            and with a ``+`` behind it, a value is put behind those of a list. A class that is given
            to an argument which has one keeps the arguments that it takes too.
        value: its value.

    Example:
        >>> with_option({"model": {"class_path": "itmkit.systems.TVRN"}}, "model.dropout", 0.1)
        {'model': {'class_path': 'itmkit.systems.TVRN', 'init_args': {'dropout': 0.1}}}
    """
    if option.endswith("+"):
        option = option[:-1]
        value = [
            *(value_of(config, option) or []),
            *(value if isinstance(value, list) else [value]),
        ]
    return dict(_with(config, option.split("."), value))


def value_of(config: Mapping[str, Any], option: str) -> Any:
    """The value of an option, None where none is given."""
    node: Any = config
    for part in option.split("."):
        node = _arguments(node).get(part)
    return node


def class_of(config: Mapping[str, Any], option: str) -> str | None:
    """The path of the class that is given to an argument, None where none is."""
    node = value_of(config, option)
    found = node.get("class_path") if isinstance(node, Mapping) else node
    return found if isinstance(found, str) else None


def accepts(class_path: str, argument: str) -> bool:
    """Whether a class, or a base that it hands ``**kwargs`` on to, has an argument."""
    owner = locate_class(class_path)
    for base in getattr(owner, "__mro__", [owner]):
        maker = vars(base).get("__init__") if isinstance(base, type) else base
        if not callable(maker):
            continue
        parameters = inspect.signature(maker).parameters
        if argument in parameters:
            return True
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            return False
    return False


def locate_class(class_path: str) -> Any:
    """A class by its path, or by its name alone where :data:`PLACES` have it; None if not."""
    paths = [class_path] if "." in class_path else [f"{place}.{class_path}" for place in PLACES]
    for path in paths:
        try:
            found = locate(path)
        except ErrorDuringImport:  # in a module of the user's: the parser reports it
            if path.startswith("itmkit."):
                raise
            continue
        if found is not None:
            return found
    return None


def short_names() -> list[str]:
    """Names of the classes in :data:`PLACES`, which a configuration may give without their module.

    They are imported: jsonargparse finds by its name only a class that is.
    """
    names: list[str] = []
    for module in map(import_module, PLACES):
        classes = (name for name in module.__all__ if isinstance(getattr(module, name), type))
        names += classes
    return names


def _given(config: Mapping[str, Any], places: tuple[str, ...]) -> tuple[str, Any] | None:
    """The first place with a value, and that."""
    for place in places:
        function, _, option = place.rstrip(")").rpartition("(")
        value = value_of(config, option)
        if function and value is not None:
            try:
                value = _FUNCTIONS[function](value)
            except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError):
                value = None  # what reads the files has the better error
        if value is not None and not isinstance(value, Mapping):
            return place, value
    return None


def _filled(config: Mapping[str, Any], place: str, value: Any) -> dict[str, Any]:
    """What sets a value at a place, nothing where it does not belong there."""
    parent, _, name = place.rpartition(".")
    if "(" in place or name in _arguments(value_of(config, parent)):
        return {}
    if value_of(config, f"{parent}.{INSTEAD.get(name, name)}") is not None:
        return {}
    above, _, own = parent.rpartition(".")
    if parent in MADE and own not in _arguments(value_of(config, above)):
        return {parent: {"class_path": MADE[parent], "init_args": {name: value}}}
    class_path = class_of(config, parent)
    return {place: value} if class_path and accepts(class_path, name) else {}


def _with(node: Any, parts: list[str], value: Any) -> Any:
    if not parts:
        return _replaced(node, value)
    if isinstance(node, list) and node:
        return [*node[:-1], _with(node[-1], parts, value)]
    name, *rest = parts
    node = {"class_path": node} if isinstance(node, str) else node or {}
    if name == "class_path":
        return _replaced(node, value)
    if name == "init_args":
        return {**node, name: _with(_arguments(node), rest, value)}
    if "class_path" in node:
        return {**node, "init_args": _with(_arguments(node), parts, value)}
    return {**node, name: _with(node.get(name), rest, value)}


def _replaced(old: Any, new: Any) -> Any:
    """What an argument has when it is given ``new``; a class keeps what it takes too."""
    if not isinstance(old, Mapping) or "class_path" not in old or not isinstance(new, str):
        return new
    kept = {name: one for name, one in _arguments(old).items() if accepts(new, name)}
    return {"class_path": new, "init_args": kept}


def _arguments(node: Any) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        return {}
    return node.get("init_args") or {} if {"class_path", "init_args"} & node.keys() else node


def _described(place: str) -> str:
    function, _, option = place.rstrip(")").rpartition("(")
    return f"the {function.replace('_', ' ')} of {option}" if function else place


def _width(folder: Any) -> int | None:
    """Width of the image features in a folder."""
    import numpy as np

    path = next(iter(sorted(user_path(folder).glob("*_ims.npy"))), None)
    return None if path is None else int(np.load(path, mmap_mode="r", allow_pickle=False).shape[-1])


def _token_width(folder: Any) -> int | None:
    """Width of a hidden state in a folder of token features."""
    path = next(iter(sorted(user_path(folder).glob("*_tokens.json"))), None)
    notes = {} if path is None else read_json(path)
    return notes["shape"][1] // len(notes["layers"]) if notes else None


def _channels(model: Any) -> int:
    """Width of the features of a timm model."""
    import torch

    from itmkit.lazy_imports import import_timm

    with torch.device("meta"):
        built: Any = import_timm().create_model(model, num_classes=0)
    return int(built.num_features)


def _hidden_size(model: Any) -> int:
    """Width of the hidden states of texts of a transformers model; its configuration is fetched."""
    from transformers import AutoConfig

    from itmkit.pretrained import fetching, hub_token

    name = str(user_path(model))
    with fetching("text_model", name):
        config = AutoConfig.from_pretrained(name, token=hub_token(), trust_remote_code=False)
    return int(config.get_text_config().hidden_size)


_FUNCTIONS: dict[str, Callable[[Any], int | None]] = {
    "length": len,
    "width": _width,
    "token_width": _token_width,
    "channels": _channels,
    "hidden_size": _hidden_size,
}
