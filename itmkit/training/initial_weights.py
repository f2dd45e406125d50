"""A new run that starts from the weights of another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from itmkit.checks import InputError
from itmkit.data import ImageTextData, WordTokenizer
from itmkit.nn import WordEmbedding

_MOST_LISTED = 5  # of what does not fit, in an error


def load_initial_weights(
    path: Path,
    checkpoint: Mapping[str, Any],
    model: LightningModule,
    data: ImageTextData,
    *,
    strict: bool = True,
) -> None:
    """Give a model the weights of a checkpoint, and nothing else of it.

    Buffers that a module names in ``training_state`` belong to the run that was and keep their
    values, such as a queue of vectors or a margin that moves. The words are those of the new data.
    Where they are not those of the checkpoint, its word embedding does not fit, of whatever size:
    its rows are of other words.

    Args:
        path: of the checkpoint.
        checkpoint: with a ``state_dict``.
        model: that gets the weights.
        data: it will be trained on.
        strict: all must fit; else what does not is left out and listed.

    Raises:
        InputError: if something does not fit, or if nothing does.
    """
    saved, own = checkpoint["state_dict"], model.state_dict()
    run_state = _training_state(model)
    misfits = dict.fromkeys(saved.keys() - own.keys() - run_state, "not in the model")
    for name in own.keys() - run_state:
        if name not in saved:
            misfits[name] = "not in the checkpoint"
        elif saved[name].shape != own[name].shape:
            misfits[name] = f"{tuple(saved[name].shape)}, expected {tuple(own[name].shape)}"
    words, of_data = _other_words(checkpoint, model, data)
    for name in words & own.keys():
        misfits[name] = f"{misfits[name]}; {of_data}" if name in misfits else of_data
    unfit = [f"{name} ({misfits[name]})" for name in sorted(misfits)]
    left_out = misfits.keys() | run_state
    fitting = {name: value for name, value in saved.items() if name not in left_out}
    if strict and unfit:
        more = f" and {len(unfit) - _MOST_LISTED} more" if len(unfit) > _MOST_LISTED else ""
        raise InputError(
            f"init_from '{path}' does not fit: {', '.join(unfit[:_MOST_LISTED])}{more}; "
            "--init_strict false leaves out what does not fit"
        )
    if not fitting:
        raise InputError(f"init_from '{path}' has no weights that fit the model; expected some")
    model.load_state_dict(fitting, strict=False)
    report = rank_zero_only(print)
    report(f"weights of {path}: {len(fitting)} of {len(own.keys() - run_state)} tensors")
    for line in unfit:
        report(f"left out: {line}")


def _training_state(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in getattr(module, "training_state", ())
    }


def _other_words(
    checkpoint: Mapping[str, Any], model: nn.Module, data: ImageTextData
) -> tuple[set[str], str]:
    """The word embeddings of the model, where the checkpoint has other words; and why."""
    words = checkpoint.get(type(data).__qualname__, {}).get("vocabulary")
    if words is None or not isinstance(data.tokenizer, WordTokenizer):
        return set(), ""
    own = list(data.tokenizer.vocabulary.words)
    if list(words) == own:
        return set(), ""
    saved, shared = checkpoint["state_dict"], len(set(words) & set(own))
    found = {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.Embedding, WordEmbedding))
        and len(module.weight) >= data.vocabulary_size
        and len(saved.get(f"{prefix}.weight", ())) >= len(words)
    }
    return found, f"rows of {len(words)} words, of which {shared} are of the {len(own)} of the data"
