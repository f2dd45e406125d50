"""Features by frozen models that are given by name: their preprocessing and tokenizer with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itmkit.data import (
    ImageTextDataset,
    TransformersTokenizer,
    extract_features,
    extract_text_features,
)
from itmkit.files import user_path
from itmkit.nn import TimmGrid
from itmkit.nn.encoders.transformer_backbone import TransformerBackbone


def extract_by_timm(
    photos: ImageTextDataset,
    model: str,
    output: Path,
    *,
    checkpoint: str | Path | None,
    checkpoint_by_order: bool,
    pretrained: bool,
    image_size: int,
    out_index: int = -1,
    mirror_mean: bool = False,
    **options: Any,
) -> Path:
    """The grid features of photos by a timm model, see :class:`~itmkit.nn.TimmGrid`.

    Args:
        photos: serve pixels of ``image_size``.
        model: name of the model.
        output: folder to write to.
        checkpoint: file with the weights of the model.
        checkpoint_by_order: match its tensors by order and shape, not by name.
        pretrained: fetch the weights that timm knows.
        image_size: side of the photos in pixels.
        out_index: stage whose features are taken, -1 for the last.
        mirror_mean: whether features are the mean of those of a photo and of its mirror image.
        **options: see :func:`~itmkit.data.extract_features`.

    Returns:
        The path of the features.
    """
    arguments: dict[str, Any] = {
        "model_name": model,
        "pretrained": pretrained,
        "checkpoint": None if checkpoint is None else str(user_path(checkpoint).resolve()),
        "checkpoint_by_order": checkpoint_by_order,
        "image_size": image_size,
        "out_index": out_index,
        "mirror_mean": mirror_mean,
        "frozen": True,
    }
    config = {"class_path": "itmkit.nn.TimmGrid", "init_args": arguments}
    backbone = TimmGrid(**arguments)
    name = f"{model}, mean with the mirror image" if mirror_mean else model
    return extract_features(photos, backbone, output, name=name, config=config, **options)


def extract_by_transformers(
    captions: Sequence[str],
    model: str | Path,
    output: Path,
    *,
    layers: Sequence[int] = (-1,),
    max_length: int = 64,
    **options: Any,
) -> Path:
    """The token features of captions by a text model of transformers, with its tokenizer.

    Args:
        captions: of a split.
        model: name on the hub, or a local folder.
        output: folder to write to.
        layers: hidden states that are stored side by side.
        max_length: most tokens of a caption; fewer where the model has fewer positions.
        **options: see :func:`~itmkit.data.extract_text_features`.

    Returns:
        The path of the features.
    """
    text = TransformerBackbone(model, layers=layers, layers_name="text_layers", frozen=True)
    length = min(max_length, text.max_length or max_length)
    tokenizer = TransformersTokenizer(model, max_length=length)
    return extract_text_features(captions, text, tokenizer, output, name=str(model), **options)
