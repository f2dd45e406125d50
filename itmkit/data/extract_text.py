"""Token features of captions by a frozen text model, written to disk once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from itmkit.checks import InputError, check_choice, check_count
from itmkit.data.array_writer import ArrayWriter, digest, digest_of_weights
from itmkit.data.token_file import digest_of_captions, digest_of_tokenizer
from itmkit.data.tokenizer import CaptionTokens, Tokenizer
from itmkit.files import user_path, write_text
from itmkit.modes import evaluation_mode, on_device, usable_device

_BATCHES = 16  # that are ordered by length together, and written together


def extract_text_features(
    captions: Sequence[str],
    backbone: nn.Module,
    tokenizer: Tokenizer,
    output: str | Path,
    *,
    split: str,
    name: str = "",
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    dtype: Literal["float16", "float32"] = "float16",
    progress: bool = True,
) -> Path:
    """Write the hidden states of every token of some captions, as ``text_features`` reads them.

    Every caption is stored once, without padding, between the start and end tokens that it has in
    training. Stopped at any point, the same call continues after the last whole block; the files
    get their names only when all is done.

    Args:
        captions: of a split; one that comes twice is stored once.
        backbone: the text model and the layers that are read, whose hidden states are stored side
            by side: an encoder of :mod:`itmkit.nn` by the transformers library. It runs in
            evaluation mode, and is afterwards as before.
        tokenizer: of the model; its ``max_length`` is that of training.
        output: folder to write to, made where missing; that of image features will do.
        split: name of the split, and first part of the names of the files.
        name: of the model, noted beside the features.
        batch_size: captions at a time.
        device: where the model runs.
        dtype: of the numbers on disk.
        progress: whether a bar is shown.

    Returns:
        The path of ``{split}_tokens.npy``.

    Raises:
        OSError: if the folder cannot be written to, or the disk is full.
        InputError: if an argument is out of its range, tokenizer and model do not fit each other,
            the folder holds features of other settings, or one is not finite in ``dtype``.
    """
    text: Any = backbone
    check_count(batch_size=batch_size)
    check_choice("dtype", dtype, ("float16", "float32"))
    device = usable_device(device)
    if not captions:
        raise InputError(f"split {split!r} has no captions; expected one or more")
    if len(tokenizer) > text.vocab_size:
        raise InputError(
            f"tokenizer has {len(tokenizer)} ids; expected at most {text.vocab_size}, those of "
            "the text model"
        )
    captions = list(dict.fromkeys(captions))
    tokens = CaptionTokens(map(tokenizer.encode, captions))
    lengths = tokens.lengths.numpy()
    if text.max_length is not None and lengths.max() > text.max_length:
        raise InputError(
            f"tokenizer gives up to {lengths.max()} tokens; expected at most "
            f"{text.max_length}, the positions of the text model"
        )
    ids = [tokens[row].ids for row in range(len(captions))]
    folder = user_path(output)
    notes = folder / f"{split}_tokens.json"
    layers = text.layers
    settings: dict[str, Any] = {
        "text_model": name,
        "config": _digest_of_config(text),
        "weights": digest_of_weights(text.backbone),
        "tokenizer": digest_of_tokenizer(tokenizer),
        "max_length": tokenizer.max_length,
        "layers": layers,
        "captions": digest_of_captions(captions, ids),
        "shape": [int(lengths.sum()), len(layers) * text.width],
        "dtype": dtype,
        "pad_id": tokenizer.pad_id,
        "ids": len(tokenizer),
    }
    writer = ArrayWriter(
        folder / f"{split}_tokens.npy",
        settings,
        notes=notes,
        progress=folder / f"{split}_tokens_progress.json",
    )
    if writer.complete is not None:
        return writer.target
    starts = np.concatenate([[0], lengths.cumsum()])
    done = int(np.searchsorted(starts, writer.done))
    bar = tqdm(
        total=len(captions),
        initial=done,
        unit=" captions",
        desc=f"extract {split}",
        disable=not progress,
    )
    with writer, bar, evaluation_mode(backbone), on_device(backbone, device):
        while done < len(captions):
            rows = np.arange(done, min(done + _BATCHES * batch_size, len(captions)))
            block = np.empty((lengths[rows].sum(), settings["shape"][1]), dtype=np.float32)
            by_length = rows[np.argsort(lengths[rows], kind="stable")]
            for own in np.split(by_length, range(batch_size, len(rows), batch_size)):
                texts = tokens.padded(own.tolist(), tokenizer.pad_id)
                with torch.inference_mode():
                    states = text.hidden_states(texts.ids.to(device), texts.mask.to(device))
                    hidden = torch.cat(states, dim=-1).float().cpu().numpy()
                for row, features in zip(own, hidden, strict=True):
                    start = starts[row] - starts[done]
                    block[start : start + lengths[row]] = features[: lengths[row]]
            names = (
                name
                for row in rows
                for name in repeat(f"the caption {captions[row][:80]!r}", lengths[row])
            )
            writer.write(block, names)
            bar.update(len(rows))
            done = int(rows[-1]) + 1
        lines = (json.dumps(line) for line in zip(captions, ids, strict=True))
        write_text(folder / f"{split}_tokens.jsonl", "".join(f"{line}\n" for line in lines))
        write_text(notes, json.dumps(settings, indent=2) + "\n")
        writer.finish()
    return writer.target


def _digest_of_config(backbone: Any) -> str:
    config = backbone.backbone.config.to_json_string(use_diff=False)
    ignored = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
    content = {key: value for key, value in json.loads(config).items() if key not in ignored}
    return digest([json.dumps(content, sort_keys=True).encode()])
