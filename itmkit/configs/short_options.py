"""Short options for what most runs name: each stands for full options, which depend on the classes.

They are expanded before anything is parsed, so what is parsed, printed and stored are full options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from itmkit.checks import InputError
from itmkit.configs.agreement import accepts, class_of, value_of


class ShortOption(NamedTuple):
    """A short option.

    Args:
        text: what it is, for the help.
        places: full options that it may stand for; the first whose class has it is taken.
    """

    text: str
    places: tuple[str, ...]


_TEXT_MODELS = ("model.text_encoder.encoder.name_or_path", "model.text_encoder.name_or_path")
_IMAGE = "model.image_encoder"
SHORT_OPTIONS = {
    "photos": ShortOption(
        "Folder of the photos; or a tar or Parquet file, or a saved dataset, with photos inside.",
        ("data.dataset.images", "data.dataset.photos"),
    ),
    "captions": ShortOption(
        "Captions of the photos: dataset_*.json, or a table where the dataset reads one; without "
        "it those beside or inside the photos.",
        ("data.dataset.annotations", "data.dataset.captions"),
    ),
    "features": ShortOption(
        "Folder of stored image features, as `itmkit extract` and SCAN write them.",
        ("data.dataset.features", "data.dataset.root"),
    ),
    "text_features": ShortOption(
        "Folder of stored token features, as `itmkit extract --text_model` writes them.",
        ("data.text_features",),
    ),
    "text_model": ShortOption(
        "Text model: a name or folder of transformers, also for the tokenizer; or 'bigru', words "
        "from scratch.",
        _TEXT_MODELS,
    ),
    "text_checkpoint": ShortOption("Text model in a local folder.", _TEXT_MODELS),
    "image_model": ShortOption(
        "Backbone: a name that timm knows.", ("data.image_model", f"{_IMAGE}.model_name")
    ),
    "image_checkpoint": ShortOption(
        "File with the weights of --image_model.", ("data.image_checkpoint", f"{_IMAGE}.checkpoint")
    ),
    "image_checkpoint_by_order": ShortOption(
        "Whether these weights are matched by order and shape, not by name (true or false).",
        ("data.image_checkpoint_by_order", f"{_IMAGE}.checkpoint_by_order"),
    ),
}
BIGRU, TRANSFORMER, STORED = (
    f"itmkit.nn.{name}" for name in ("BiGRU", "TransformerText", "StoredTokens")
)


def expanded(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Full options and their values.

    Args:
        given: short options with their values.
        config: the configuration that they belong to.

    Raises:
        InputError: the configuration has nothing for one of them, or two exclude each other.

    Example:
        >>> from itmkit.configs import load_config
        >>> expanded({"features": "DIR"}, load_config("mate/precomp"))
        {'data.dataset.root': 'DIR'}
    """
    texts = [f"{name} is {value!r}" for name, value in given.items() if name.startswith("text_")]
    if len(texts) > 1:
        raise InputError(f"{' and '.join(texts)}; expected one of them")
    _check_source(given, config)
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name.startswith("text_"):
            found |= _text(name, value, config)
        else:
            found[_place(name, value, config)] = value
    return found


def _place(name: str, value: Any, config: Mapping[str, Any]) -> str:
    for place in SHORT_OPTIONS[name].places:
        owner = class_of(config, place.rpartition(".")[0])
        if owner is not None and accepts(owner, place.rpartition(".")[2]):
            return place
    owner = SHORT_OPTIONS[name].places[-1].rpartition(".")[0]
    kind = class_of(config, owner)
    why = "no configuration gives a class to" if kind is None else f"{kind} takes none, as"
    raise InputError(f"{name} is {value!r}, but {why} {owner}; expected another --config")


def _check_source(given: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise where photos are given to what reads features, or the other way round."""
    features = value_of(config, "data.dataset.features")
    if "photos" in given and (features is not None or "features" in given):
        raise InputError(
            f"photos is {given['photos']!r}, but features are read instead "
            f"({given.get('features', features)!r}); expected a configuration of photos"
        )
    encoder = class_of(config, _IMAGE)
    if "features" in given and encoder is not None and accepts(encoder, "model_name"):
        raise InputError(
            f"features is {given['features']!r}, but {_IMAGE} is {encoder}, which reads pixels; "
            "expected a configuration of features, such as mate/karpathy or mate/precomp"
        )


def _text(name: str, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a text model, or of stored features in its place."""
    owner = "model.text_encoder"
    if class_of(config, f"{owner}.encoder") is not None:
        owner = f"{owner}.encoder"
    current, tokenizer = class_of(config, owner), class_of(config, "data.tokenizer")
    if current is None:
        raise InputError(f"{name} is {value!r}, but there is no {owner}; expected a --config")
    data = class_of(config, "data")
    extracts = data is not None and accepts(data, "text_model")
    found = {"data.text_model": value} if extracts else {f"{owner}.name_or_path": value}
    kind, argument = TRANSFORMER, "name_or_path"
    if name == "text_features":
        if extracts:
            raise InputError(f"text_features is {value!r}, but {data} extracts them: expected none")
        found = {"data.text_features": value}
    elif value == "bigru":
        if accepts(current, "layers"):
            raise InputError(f"{name} is 'bigru', which has one level; {current} has several")
        found = {"data.text_model": None} if extracts else {}
        kind, argument = BIGRU, "embed_dim"
        if tokenizer is not None:
            found["data.tokenizer"] = None
    elif tokenizer is not None and not extracts and accepts(tokenizer, "name_or_path"):
        found["data.tokenizer.name_or_path"] = value
    if name == "text_features" or (extracts and value != "bigru"):
        kind, argument = STORED, "in_dim"
    return found if accepts(current, argument) else {owner: kind, **found}
