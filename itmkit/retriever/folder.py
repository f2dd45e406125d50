"""A retriever as a folder: weights as safetensors, the rest as YAML and JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from itmkit import __version__
from itmkit.checks import InputError
from itmkit.data.preprocessing import Preprocessing
from itmkit.data.tokenizer import Tokenizer, TransformersTokenizer, WordTokenizer
from itmkit.data.vocabulary import Vocabulary
from itmkit.files import (
    check_folder,
    read_json,
    read_yaml,
    sole_writer_beside,
    user_path,
    write_text,
)
from itmkit.nn.weights import report_misfits, stored_by
from itmkit.pretrained import sources, weights_follow
from itmkit.retriever.card import CARD, check_usage, model_card
from itmkit.retriever.facts import ModelFacts
from itmkit.systems import Matcher
from itmkit.systems.build import build, build_system, check_class_paths

if TYPE_CHECKING:
    from itmkit.retriever.retriever import Retriever

FORMAT = 1
MANIFEST = "retriever.yaml"
WEIGHTS = "model.safetensors"
PRETRAINED = "pretrained.json"
WORDS = "vocabulary.json"
FACTS = "facts.json"
FILES = (MANIFEST, WEIGHTS, PRETRAINED, WORDS, FACTS)

_FIELDS = {
    "format",
    "itmkit_version",
    "model",
    "backbone",
    "text_backbone",
    "tokenizer",
    "preprocessing",
    "feature_dtype",
    "text_feature_dtype",
    "relation_threshold",
}
_SECOND_STAGE = ("rerank_top_k", "rerank_weight", "rerank_standardised")
_OF_TRAINING = ("optimizer", "lr_scheduler")  # arguments of a model that a retriever has no use of


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a saved retriever."""
    return (folder / MANIFEST).is_file()


def save(retriever: Retriever, folder: str | Path, *, hub_name: str | None = None) -> None:
    """Write a retriever; see :meth:`Retriever.save_pretrained`.

    Args:
        retriever: with its facts.
        folder: to make.
        hub_name: that the card loads it by; None: that of the folder.
    """
    target = user_path(folder).resolve()  # of a link, the folder that it leads to
    if target.exists() and not is_saved(target) and (target.is_file() or any(target.iterdir())):
        raise InputError(f"folder is '{target}', which holds other files; expected a new folder")
    if Path.cwd().is_relative_to(target):
        raise InputError(f"folder is '{target}', the working directory; expected a new folder")
    parts = _parts(retriever.model, retriever.backbone, retriever.text_backbone)
    configs: dict[str, Any] = {
        name: getattr(module, "model_config", None) for name, module in parts.items()
    }
    for name, module in parts.items():
        if configs[name] is None:
            raise InputError(
                f"{name} is a {type(module).__name__} that was built in code; expected one with "
                "model_config, its class_path and init_args, as of a run or by name"
            )
    config = configs["model"]
    arguments = config.get("init_args", {})
    kept = {name: value for name, value in arguments.items() if name not in _OF_TRAINING}
    # as they were fitted, where the configuration leaves them to a fit
    kept |= {name: getattr(retriever.model, name) for name in _SECOND_STAGE if name in kept}
    manifest = {
        "format": FORMAT,
        "itmkit_version": __version__,
        "model": {"class_path": config["class_path"], "init_args": kept},
        "backbone": configs.get("backbone"),
        "text_backbone": configs.get("text_backbone"),
        "tokenizer": _tokenizer_config(retriever.tokenizer),
        "preprocessing": retriever.preprocessing.to_dict(),
        "feature_dtype": retriever.feature_dtype,
        "text_feature_dtype": retriever.text_feature_dtype,
        "relation_threshold": retriever.relation_threshold,
    }
    manifest = _without_folders(manifest)
    with sole_writer_beside(target):
        _write(retriever, manifest, parts, target, hub_name or target.name)


def _without_folders(section: Any) -> Any:
    """A configuration that names the checkpoints of our modules without their folders.

    Their weights are stored, and where they lay is nobody's business.

    Example:
        >>> arguments = {"checkpoint": "/home/me/weights.pt"}
        >>> _without_folders({"class_path": "itmkit.nn.TimmGrid", "init_args": arguments})
        {'class_path': 'itmkit.nn.TimmGrid', 'init_args': {'checkpoint': 'weights.pt'}}
    """
    if isinstance(section, list):
        return list(map(_without_folders, section))
    if not isinstance(section, Mapping):
        return section
    found = {name: _without_folders(value) for name, value in section.items()}
    arguments, ours = found.get("init_args"), str(found.get("class_path")).startswith("itmkit.")
    if ours and arguments and arguments.get("checkpoint") is not None:
        arguments["checkpoint"] = Path(arguments["checkpoint"]).name
    return found


def _write(
    retriever: Retriever,
    manifest: dict[str, Any],
    parts: Mapping[str, nn.Module],
    target: Path,
    name: str,
) -> None:
    modules = [one for module in parts.values() for one in module.modules()]
    work, old = (target.with_name(f".{target.name}.{end}") for end in ("part", "old"))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        write_text(work / MANIFEST, yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True))
        content = json.dumps(sources(retriever.tokenizer, *modules), ensure_ascii=False)
        write_text(work / PRETRAINED, content)
        if isinstance(retriever.tokenizer, WordTokenizer):
            retriever.tokenizer.vocabulary.save(work / WORDS)
        facts = json.dumps(retriever.facts.to_dict(), ensure_ascii=False, indent=2)
        write_text(work / FACTS, facts + "\n")
        save_file(_weights(parts), work / WEIGHTS)
        shutil.copymode(work / MANIFEST, work / WEIGHTS)  # safetensors lets the owner alone read it
        trust = foreign_packages(manifest)
        check_usage(retriever, work, trust)
        write_text(work / CARD, model_card(retriever, name, trust))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a process that was killed
            target.rename(old)
        try:
            work.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def read(folder: str | Path, trust: Sequence[str]) -> dict[str, Any]:
    """The arguments of a retriever; see :meth:`Retriever.from_pretrained`."""
    folder = user_path(folder)
    check_folder("folder", folder)
    source = folder / MANIFEST
    content = read_yaml(source)
    with stored_by(content.get("itmkit_version")):
        return _read_parts(folder, content, trust)


def _read_parts(folder: Path, content: Mapping[str, Any], trust: Sequence[str]) -> dict[str, Any]:
    source = folder / MANIFEST
    if (found := content.get("format")) != FORMAT:
        raise InputError(f"{source} has the format {found!r}; expected {FORMAT}")
    if content.keys() != _FIELDS:
        wrong = ", ".join(sorted(content.keys() ^ _FIELDS))
        raise InputError(f"{source} has wrong or missing entries: {wrong}")
    stored = read_json(folder / PRETRAINED)
    with weights_follow(stored):
        model = build_system(content["model"], Matcher, {}, source=str(source), trust=trust)
        tokenizer = _tokenizer(content["tokenizer"], folder)
        backbone, text_backbone = (
            None
            if content[name] is None
            else build_backbone(content[name], source=str(source), trust=trust)
            for name in ("backbone", "text_backbone")
        )
    _load_weights(folder / WEIGHTS, _parts(model, backbone, text_backbone))
    return {
        "model": model,
        "tokenizer": tokenizer,
        "preprocessing": Preprocessing.from_dict(
            content["preprocessing"], source=f"preprocessing in {source}"
        ),
        "backbone": backbone,
        "text_backbone": text_backbone,
        "feature_dtype": content["feature_dtype"],
        "text_feature_dtype": content["text_feature_dtype"],
        "relation_threshold": content["relation_threshold"],
        "facts": ModelFacts.read(folder / FACTS),
    }


def foreign_packages(section: Any) -> list[str]:
    """Packages besides itmkit and torch whose classes a section names.

    Example:
        >>> foreign_packages({"class_path": "mine.Own", "init_args": {"size": 3}})
        ['mine']
    """
    found: set[str] = set()
    for inner in section.values() if isinstance(section, Mapping) else section:
        if isinstance(inner, (Mapping, list)):
            found |= set(foreign_packages(inner))
    if isinstance(section, Mapping) and isinstance(path := section.get("class_path"), str):
        found |= {path.partition(".")[0]} - {"itmkit", "torch"}
    return sorted(found)


def build_backbone(config: Mapping[str, Any], *, source: str, trust: Sequence[str]) -> Any:
    """The module that the section of a backbone describes, which it keeps as ``model_config``."""
    check_class_paths(config, source=source, trust=trust)
    backbone = build({"backbone": config}, {"backbone": nn.Module}, source=source)["backbone"]
    backbone.model_config = dict(config)
    return backbone


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    if type(tokenizer) is WordTokenizer:
        return {"words": WORDS, "max_length": tokenizer.max_length}
    source = getattr(tokenizer, "pretrained_source", None)
    if type(tokenizer) is TransformersTokenizer and source is not None:
        return {"transformers": source.name, "max_length": tokenizer.max_length}
    raise InputError(
        f"tokenizer is a {type(tokenizer).__name__}; expected a WordTokenizer or a "
        "TransformersTokenizer, which can be saved"
    )


def _tokenizer(content: Any, folder: Path) -> Tokenizer:
    if isinstance(content, Mapping) and content.keys() == {"words", "max_length"}:
        words = Vocabulary.load(folder / WORDS)
        return WordTokenizer(words, max_length=content["max_length"])
    if isinstance(content, Mapping) and content.keys() == {"transformers", "max_length"}:
        return TransformersTokenizer(content["transformers"], max_length=content["max_length"])
    raise InputError(f"{folder / MANIFEST} has the tokenizer {content!r}; expected one of itmkit")


def _parts(
    model: nn.Module, backbone: nn.Module | None, text_backbone: nn.Module | None
) -> dict[str, nn.Module]:
    found = {"model": model, "backbone": backbone, "text_backbone": text_backbone}
    return {name: module for name, module in found.items() if module is not None}


def _weights(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All weights, each with its own memory, which safetensors asks for."""
    return {
        f"{part}.{name}": tensor.detach().cpu().clone().contiguous()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def _load_weights(path: Path, parts: Mapping[str, nn.Module]) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole file of safetensors: {error}") from error
    known = {name for name in weights if name.partition(".")[0] in parts}
    for part, module in parts.items():
        own = {n.partition(".")[2]: t for n, t in weights.items() if n.partition(".")[0] == part}
        with report_misfits(module, own, str(path)):
            module.load_state_dict(own)
    if known != weights.keys():
        raise InputError(f"{path} has {sorted(weights.keys() - known)[0]!r}; expected no more")
