"""Where a model is from: its run, what that was measured on, and the models that it was made of."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from itmkit.checks import InputError, type_of
from itmkit.files import read_json, read_yaml
from itmkit.lazy_imports import import_timm

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_FOLDERS = re.compile(r"(?<![\w.:/])(?:~|/)[^\s=,:'\"\[\]{}]*/")


def check_licence(licence: str | None) -> None:
    """Raise unless it has the form of an identifier of the hub, such as ``"apache-2.0"``."""
    if licence is not None and not (isinstance(licence, str) and _LICENCE.fullmatch(licence)):
        raise InputError(
            f"licence is {licence!r}; expected an identifier such as 'mit' or 'apache-2.0'"
        )


def without_folders(value: Any) -> Any:
    """Plain data with absolute paths cut to their names: a card is read by others.

    Example:
        >>> without_folders({"images": "/home/me/photos", "split": ["train", "~/a/b.json"]})
        {'images': 'photos', 'split': ['train', 'b.json']}
        >>> without_folders("itmkit fit --config=/tmp/mine.yaml --data.images runs/photos")
        'itmkit fit --config=mine.yaml --data.images runs/photos'
    """
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    return [without_folders(inner) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class ModelFacts:
    """What is known of where a model is from; its card is written from this.

    Args:
        command: that trained it, absolute paths cut to their names.
        versions: of itmkit, Python and the libraries, as it was trained.
        step: optimizer steps that the weights were trained.
        dataset: ``class_path`` and ``init_args`` of the data, absolute paths cut to their names.
        splits: images and captions of the splits that were open in training, by name.
        evaluations: of these weights: each has ``recall``, and ``about``, which is
            :class:`itmkit.retrieval.EvaluatedOn` as a dictionary.
        base_models: names on the hub of models that it was made of.
        licence: identifier of the hub, such as ``"apache-2.0"``; None: not stated.
    """

    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    step: int | None = None
    dataset: Mapping[str, Any] | None = None
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    base_models: list[str] = field(default_factory=list)
    licence: str | None = None

    @classmethod
    def of_run(cls, folder: Path, checkpoint: Path, step: int) -> Self:
        """What the folder of a run, and those of its evaluations beside it, say of a checkpoint.

        Args:
            folder: of the run.
            checkpoint: file of the weights.
            step: optimizer steps of these.
        """
        config = read_yaml(folder / "config.yaml")
        environment = _read(folder / "environment.yaml")
        dataset = config["data"].get("init_args", {}).get("dataset")
        return cls(
            without_folders(environment.get("command")),
            environment.get("versions", {}),
            step,
            without_folders(dataset) if isinstance(dataset, dict) else None,
            environment.get("data") or {},
            _evaluations(folder.resolve(), checkpoint.resolve(), step),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """From the file that :meth:`to_dict` was written to; of nothing, where there is none.

        Raises:
            InputError: it is broken.
        """
        content = read_json(path) if path.is_file() else {}
        if not isinstance(content, dict) or content.keys() - {one.name for one in fields(cls)}:
            raise InputError(f"{path} holds {type_of(content)}; expected the facts of a model")
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def _evaluations(folder: Path, checkpoint: Path, step: int) -> list[dict[str, Any]]:
    """The newest evaluation of a checkpoint on every split, by every protocol."""
    found = {}
    beside = sorted(path for path in folder.parent.iterdir() if not path.is_symlink())
    for path in (folder, *beside):
        metrics = _read(path / "metrics.json")
        for stage, about in metrics.get("about", {}).items():
            # relative to its run, or to the folder that the command was given in
            named = Path(about.get("checkpoint") or "")
            same = checkpoint.parts[-3:] in ((path.name, *named.parts), named.parts[-3:])
            if not same or about.get("step") != step:
                continue
            recall = {
                name.removeprefix(f"{stage}/"): value
                for name, value in metrics.items()
                if name.startswith(f"{stage}/")
            }
            found[stage, about.get("protocol")] = {"recall": recall, "about": about}
    return list(found.values())


def _read(path: Path) -> dict[str, Any]:
    """A record of a run; empty where there is none, and with a warning where it is broken."""
    if not path.is_file():
        return {}
    try:
        return read_yaml(path)
    except (OSError, InputError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"{path} cannot be read, so no card has it: {reason}", stacklevel=2)
        return {}


def base_models(*sections: Any) -> list[str]:
    """Models of the hub whose weights the sections of some modules start from.

    Example:
        >>> clip = {"class_path": "itmkit.nn.ClipModel", "init_args": {"name_or_path": "me/clip"}}
        >>> base_models({"class_path": "itmkit.systems.DualEncoder", "init_args": {"clip": clip}})
        ['me/clip']
    """
    found: set[str] = set()
    for section in sections:
        if isinstance(section, Mapping):
            found |= {*base_models(*section.values()), *_named_weights(section)}
        elif isinstance(section, list):
            found |= set(base_models(*section))
    return sorted(found)


def _named_weights(arguments: Mapping[str, Any]) -> Iterator[str]:
    name = arguments.get("name_or_path")
    timm_name = arguments.get("model_name")
    if isinstance(timm_name, str) and arguments.get("pretrained"):
        place, colon, name = timm_name.rpartition(":")
        if not colon:
            known = import_timm().get_pretrained_cfg(timm_name)
            name = None if known is None else known.hf_hub_id
        elif place == "local-dir":
            name = None
    if isinstance(name, str) and HUB_NAME.fullmatch(name) and not os.path.exists(name):
        yield name
