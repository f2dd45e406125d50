"""A new run that starts from the weights of another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from itmkit.checks import InputError
from itmkit.data import ImageTextData, WordTokenizer
from itmkit.nn import HubnessCorrection, WordEmbedding
from itmkit.nn.weights import misfits, misfits_text, stored_by


def load_initial_weights(
    path: str | Path,
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    data: LightningDataModule | None = None,
    *,
    strict: bool = True,
) -> None:
    """Give a model the weights of a checkpoint, and nothing else of it.

    Buffers that a module names in ``training_state`` belong to the run that was and keep their
    values, such as a queue of vectors or a margin that moves. Those in ``refilled_state``, which a
    fit fills anew, need not fit: the bank of a correction of hubs, which the model may also lack.
    The words are those of the new data. Where they are not those of the checkpoint, its word
    embedding does not fit, of whatever size: its rows are of other words.

    Args:
        path: of the checkpoint, for what is printed.
        checkpoint: with a ``state_dict``.
        model: that gets the weights.
        data: it will be trained on; its words count where it is an :class:`ImageTextData`.
        strict: all must fit; else what does not is left out and listed.

    Raises:
        InputError: if something does not fit, or if nothing does.

    Example:
        >>> old, new = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> load_initial_weights("old.ckpt", {"state_dict": old.state_dict()}, new)
        weights of old.ckpt: 2 of 2 tensors
        >>> new.weight.equal(old.weight)
        True
    """
    saved, own = checkpoint["state_dict"], model.state_dict()
    modules = dict(model.named_modules())
    run_state = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in modules.items()
        for name in getattr(module, "training_state", ())
    }
    found = {name: why for name, why in misfits(model, saved).items() if name not in run_state}
    refilled: set[str] = set()  # whole, as its parts belong together
    for prefix in modules.keys() | {name.rpartition(".")[0] for name in saved}:
        module = modules.get(prefix, HubnessCorrection)  # the model may have none
        parts = {f"{prefix}.{name}" for name in getattr(module, "refilled_state", ())}
        refilled |= parts if parts & found.keys() else set()
    for name, why in _embeddings_of_other_words(checkpoint, modules, data).items():
        found[name] = f"{found[name]}; {why}" if name in found else why
    if strict and (wrong := {n: why for n, why in found.items() if n not in refilled}):
        misfit = misfits_text(model, wrong, f"init_from '{path}'")
        with stored_by(checkpoint.get("itmkit_version")):
            raise InputError(f"{misfit}; --init_strict false leaves out what does not fit")
    fitting = {
        n: value for n, value in saved.items() if n not in found.keys() | run_state | refilled
    }
    if not fitting:
        raise InputError(f"init_from '{path}' has no weights that fit the model; expected some")
    model.load_state_dict(fitting, strict=False)
    report = rank_zero_only(print)
    report(f"weights of {path}: {len(fitting)} of {len(own.keys() - run_state)} tensors")
    for name in sorted(found):
        report(f"left out: {name} ({found[name]})")


def _embeddings_of_other_words(
    checkpoint: Mapping[str, Any], modules: Mapping[str, nn.Module], data: object
) -> dict[str, str]:
    """Names of word embeddings, where the checkpoint has other words than the data; and why."""
    if not isinstance(data, ImageTextData) or not isinstance(data.tokenizer, WordTokenizer):
        return {}
    own = list(data.tokenizer.vocabulary.words)
    words = checkpoint.get(type(data).__qualname__, {}).get("vocabulary")
    if words is None or list(words) == own:
        return {}
    saved, shared = checkpoint["state_dict"], len(set(words) & set(own))
    why = f"rows of {len(words)} words, of which {shared} are of the {len(own)} of the data"
    return {
        f"{prefix}.weight": why
        for prefix, module in modules.items()
        if isinstance(module, (nn.Embedding, WordEmbedding))
        and len(module.weight) >= data.vocabulary_size
        and len(saved.get(f"{prefix}.weight", ())) >= len(words)
    }
