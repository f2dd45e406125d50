"""A retriever from a run, a saved folder, or the name of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from itmkit.checks import InputError, did_you_mean
from itmkit.data.array_writer import digest_of_weights
from itmkit.data.preprocessing import Preprocessing
from itmkit.data.token_file import digest_of_tokenizer
from itmkit.data.tokenizer import Tokenizer, TransformersTokenizer, WordTokenizer
from itmkit.data.vocabulary import Vocabulary
from itmkit.files import read_json, read_yaml, user_path
from itmkit.modes import usable_device
from itmkit.nn.encoders.transformer_backbone import TransformerBackbone
from itmkit.pretrained import ModelNotFoundError, fetching, hub_token, using_token, weights_follow
from itmkit.retriever.facts import HUB_NAME, ModelFacts, base_models
from itmkit.retriever.folder import FILES, MANIFEST, build_backbone, is_saved
from itmkit.retriever.names import find_index
from itmkit.retriever.retriever import Retriever
from itmkit.systems import DualEncoder, Matcher
from itmkit.systems.build import build, check_class_paths, restore_system
from itmkit.systems.load import RUNS, best_checkpoint, checkpoint_content

if TYPE_CHECKING:
    from itmkit.index import Index

#: Tokens that models were trained on at most, where their positions are more.
_TEXT_LENGTHS = {"align": 64, "chinese_clip": 52}


def load(
    path_or_name: str | Path,
    *,
    device: torch.device | str | None = None,
    backbone: nn.Module | None = None,
    trust: Sequence[str] = (),
    revision: str | None = None,
    token: str | None = None,
) -> Retriever:
    """A model with all that it needs to take pictures and sentences.

    Nothing is downloaded that is on this machine; a download is announced with its size and
    licence. No code that comes with a model is run.

    Args:
        path_or_name: the first that there is of: a folder of :meth:`Retriever.save_pretrained`;
            the folder of a run, or of all runs of a name, of which the latest is taken; a
            checkpoint in a run; a folder of a CLIP-like model of transformers; NAME for
            ``runs/NAME/latest``; the name on the hub of such a model, or of what
            :meth:`Retriever.push_to_hub` uploaded.
        device: where the model goes; None: a GPU if there is one.
        backbone: makes the features of images from their pixels, for a run on stored features
            whose backbone cannot be found; None: what ``itmkit extract`` noted beside them.
        trust: packages besides itmkit and torch whose classes a run or folder may name; they are
            imported.
        revision: branch, tag or commit of what ``push_to_hub`` uploaded; None: the newest.
        token: of an account that may read what is private on the hub; None: that of ``hf auth
            login`` or of the environment variable ``HF_TOKEN``. It is neither stored nor shown.

    Raises:
        FileNotFoundError: there is no such folder or file.
        InputError: there is no such model, or what is there cannot become a retriever.
    """
    device = usable_device(device)
    if not isinstance(path_or_name, (str, Path)) or not str(path_or_name):
        raise InputError(f"path_or_name is {path_or_name!r}; expected a folder or a name")
    if revision is not None and not (isinstance(revision, str) and revision.strip()):
        raise InputError(f"revision is {revision!r}; expected a branch, tag or commit, or None")
    path = user_path(path_or_name)
    if not path.exists():
        run = RUNS / path / "latest"
        if run.exists():
            path = run
        elif not HUB_NAME.fullmatch(str(path_or_name)):
            raise FileNotFoundError(f"path_or_name is '{path}', which does not exist")
        else:
            name = str(path_or_name)
            _check_no_backbone(backbone, name)
            source = name if revision is None else f"{name}@{revision}"
            with using_token(token):
                try:
                    retriever = _from_hub(name, revision, trust)
                except ModelNotFoundError as error:
                    hint = did_you_mean(name, [one.name for one in RUNS.glob("*")])
                    raise ModelNotFoundError(
                        f"{error}; nor is there a run {RUNS / path}{hint}"
                    ) from error
            return _with_source(retriever, source, device)
    if revision is not None:
        raise InputError(f"revision is {revision!r}, and '{path}' is local; expected None")
    path = path.resolve() if path.name == "latest" else path
    if path.is_dir() and not (path / "config.yaml").is_file() and (path / "latest").exists():
        path = (path / "latest").resolve()
    if path.is_file() or (path / "config.yaml").is_file():
        return _with_source(_from_run(path, backbone, trust), path, device)
    _check_no_backbone(backbone, path)
    if is_saved(path):
        return _with_source(Retriever.from_pretrained(path, trust=trust), path, device)
    if (path / "config.json").is_file():
        return _with_source(_from_transformers(str(path)), path, device)
    raise InputError(
        f"path_or_name is '{path}', a folder without config.yaml (of a run), {MANIFEST} (of a "
        "saved retriever) or config.json (of a model of transformers); expected one of them"
    )


def open_index(
    name: str, *, model: str | None = None, device: torch.device | str | None = None
) -> Index:
    """An index with the model that it was made with.

    Args:
        name: folder of the index, or NAME of a run for ``runs/NAME/index``.
        model: as :func:`load` takes it; None: what the index was made with.
        device: where the model goes; None: a GPU if there is one.

    Raises:
        FileNotFoundError: there is no such index, or no such model.
        InputError: the index was made with another model, or does not know its name.
    """
    from itmkit.index import Index, stored_model

    folder = find_index(name)
    return Index(folder, load(model or stored_model(folder), device=device))


def _check_no_backbone(backbone: nn.Module | None, source: str | Path) -> None:
    if backbone is not None:
        raise InputError(
            f"backbone is a {type(backbone).__name__}, and '{source}' is no run; expected None: "
            "the model has its own"
        )


def _with_source(retriever: Retriever, source: str | Path, device: torch.device | str) -> Retriever:
    """On its device, and with a note of where it is from."""
    retriever.source = str(source.resolve() if isinstance(source, Path) else source)
    return retriever.to(device)


def _from_hub(name: str, revision: str | None, trust: Sequence[str]) -> Retriever:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    with fetching("path_or_name", name):
        try:
            hf_hub_download(name, MANIFEST, revision=revision, token=hub_token())
        except RevisionNotFoundError as error:
            raise InputError(
                f"revision is {revision!r}; expected a branch, tag or commit of {name}"
            ) from error
        except EntryNotFoundError as error:
            # also where it is not in the cache, and there is no network
            if revision is None:
                return _from_transformers(name)
            raise InputError(
                f"revision is {revision!r}, of which {name} has no {MANIFEST} on the hub or in the "
                "cache; expected one of a saved retriever"
            ) from error
    with fetching("path_or_name", name, weights_of=name, revision=revision):
        folder = snapshot_download(
            name, revision=revision, token=hub_token(), allow_patterns=list(FILES)
        )
    return Retriever.from_pretrained(folder, trust=trust)


def _from_transformers(name: str) -> Retriever:
    """A CLIP-like model of transformers."""
    model = DualEncoder(name, frozen=True)
    model.model_config = {
        "class_path": "itmkit.systems.DualEncoder",
        "init_args": {"name_or_path": name, "frozen": True},
    }
    own = model.clip
    most = _TEXT_LENGTHS.get(own.backbone.config.model_type, own.max_length or 77)
    tokenizer = TransformersTokenizer(name, max_length=most)
    facts = ModelFacts(base_models=base_models(model.model_config))
    preprocessing = Preprocessing.for_transformers(name, size=own.image_size)
    return Retriever(model, tokenizer, preprocessing, facts=facts)


def _from_run(path: Path, backbone: nn.Module | None, trust: Sequence[str]) -> Retriever:
    file = best_checkpoint(path / "checkpoints") if path.is_dir() else path
    folder = path if path.is_dir() else path.parent.parent
    source, stored = f"checkpoint '{file}'", _checkpoint(file)
    section = read_yaml(folder / "config.yaml").get("data")
    if not isinstance(section, dict):
        raise InputError(
            f"{folder / 'config.yaml'} has data: {section!r}; expected the section of the data of "
            "the run"
        )
    options = section.get("init_args", {})
    with weights_follow(stored.get("pretrained")):
        model = restore_system(stored, Matcher, {}, source=source, trust=trust)
        state: Mapping[str, Any] = next(filter(_is_data, stored.values()), {})
        stored_text = state.get("text_features")
        if stored_text is None:
            tokenizer = _run_tokenizer(options.get("tokenizer"), state, folder, trust)
    if "preprocessing" not in state:
        raise InputError(
            f"{source} does not say how its images were made of pictures (preprocessing); expected "
            "a run on photos, or on features that itmkit extract wrote"
        )
    text_backbone = None
    if stored_text is not None:
        text_backbone, tokenizer = _stored_text_backbone(stored_text, source)
    own = (options.get("dataset") or {}).get("init_args", {})
    features = own.get("features") or own.get("folder") or state.get("features")
    notes = _feature_notes(features, state["preprocessing"])
    if notes is not None and backbone is None:
        backbone = _stored_backbone(*notes, trust)
    facts = ModelFacts.of_run(folder, file, stored.get("global_step", 0))
    configs = [getattr(part, "model_config", None) for part in (model, backbone, text_backbone)]
    return Retriever(
        model,
        tokenizer,
        Preprocessing.from_dict(state["preprocessing"], source=f"preprocessing in {source}"),
        backbone=backbone,
        text_backbone=text_backbone,
        feature_dtype="float32" if notes is None else notes[1]["dtype"],
        text_feature_dtype="float32" if stored_text is None else stored_text["dtype"],
        relation_threshold=options.get("relation_threshold"),
        facts=replace(facts, base_models=base_models(*configs)),
    )


def _checkpoint(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    stored = checkpoint_content(file, str(file))
    if stored.get("model_config") is None:
        raise InputError(f"{file} has no model_config; expected a checkpoint of itmkit fit")
    return stored


def _is_data(value: Any) -> bool:
    """Whether this is the state of a data module, which has a name of its own."""
    return isinstance(value, dict) and "fingerprints" in value


def _run_tokenizer(
    section: Any, state: Mapping[str, Any], folder: Path, trust: Sequence[str]
) -> Tokenizer:
    source = str(folder / "config.yaml")
    if "vocabulary" in state:
        options = section.get("init_args", {}) if isinstance(section, Mapping) else {}
        lengths = {k: v for k, v in options.items() if k == "max_length"}
        return WordTokenizer(Vocabulary(state["vocabulary"]), **lengths)
    if not isinstance(section, Mapping):
        raise InputError(f"{source} has no tokenizer; expected one, or words in the checkpoint")
    check_class_paths(section, source=source, trust=trust)
    built: Tokenizer = build({"tokenizer": section}, {"tokenizer": Tokenizer}, source=source)[
        "tokenizer"
    ]
    return built


def _feature_notes(given: str | None, preprocessing: Any) -> tuple[Path, dict[str, Any]] | None:
    """What was noted beside the stored features of a run, if it was trained on some."""
    if given is None:
        return None
    folder = user_path(given)
    for path in sorted(folder.glob("*_features.json")):
        notes = read_json(path)
        if isinstance(notes, dict) and notes.get("preprocessing") == preprocessing:
            return path, notes
    raise InputError(
        f"features is '{folder}', which has no notes of itmkit extract (*_features.json) that fit "
        "the run; expected them where they were in training"
    )


def _stored_backbone(path: Path, notes: dict[str, Any], trust: Sequence[str]) -> nn.Module:
    config, name = notes.get("config"), notes.get("backbone")
    if config is None:
        raise InputError(f"{path} does not say how to build {name!r}; expected backbone=MODULE")
    try:
        backbone: nn.Module = build_backbone(config, source=str(path), trust=trust)
    except (FileNotFoundError, InputError) as error:
        raise InputError(
            f"the images of the run are features of {name!r}, which cannot be built as {path} "
            f"says: {error}; expected its weights there, or backbone=MODULE"
        ) from error
    if digest_of_weights(backbone) != notes["weights"]:
        raise InputError(
            f"the weights of {name!r} are not those that {path} was made with; expected the same, "
            "or backbone=MODULE"
        )
    return backbone


def _stored_text_backbone(
    stored: Mapping[str, Any], source: str
) -> tuple[TransformerBackbone, Tokenizer]:
    """The text model whose features a run was trained on, and its tokenizer."""
    name = stored["text_model"]
    arguments = {
        "name_or_path": name,
        "layers": stored["layers"],
        "layers_name": "layers",
        "frozen": True,
    }
    try:
        backbone: Any = TransformerBackbone(**arguments)
        tokenizer = TransformersTokenizer(name, max_length=stored["max_length"])
    except InputError as error:
        raise InputError(
            f"the captions of {source} are features of {name!r}, which cannot be loaded: {error}"
        ) from error
    same = digest_of_weights(backbone.backbone) == stored["weights"]
    if not same or digest_of_tokenizer(tokenizer) != stored["tokenizer"]:
        raise InputError(
            f"the weights or the tokenizer of {name!r} are not those that the captions of {source} "
            "were made with; expected the same"
        )
    path = f"{TransformerBackbone.__module__}.{TransformerBackbone.__qualname__}"
    backbone.model_config = {"class_path": path, "init_args": arguments}
    return backbone, tokenizer
