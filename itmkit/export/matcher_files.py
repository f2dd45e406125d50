"""What a matcher does, as ONNX files of functions from tensors to tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from itmkit.data.batch import Images, Texts
from itmkit.export.onnx_files import OnnxFiles
from itmkit.retrieval import Encoding
from itmkit.systems.matcher import Matcher


def write_matcher(files: OnnxFiles, model: Matcher, images: Images, texts: Texts) -> None:
    """Write a matcher's encoders, its scores and, if it has one, its second stage.

    Args:
        files: that get the four.
        model: the matcher.
        images: three to trace with.
        texts: four to trace with.
    """
    image, text = model.encode_image(images), model.encode_text(texts)
    image_names, text_names = list(image.items()), list(text.items())

    def encode_image(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = Images(**dict(zip(inputs_of(images), tensors, strict=True)))
        return tuple(model.encode_image(given).items().values())

    def encode_text(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(inputs_of(texts), tensors, strict=True))
        ids = given.get("ids", given["mask"].long())
        return tuple(model.encode_text(Texts(**given | {"ids": ids})).items().values())

    def sides(tensors: tuple[Tensor, ...]) -> tuple[Encoding, Encoding]:
        split = len(image_names)
        return (
            Encoding(**dict(zip(image_names, tensors[:split], strict=True))),
            Encoding(**dict(zip(text_names, tensors[split:], strict=True))),
        )

    def score(*tensors: Tensor) -> tuple[Tensor, ...]:
        return (model.score(*sides(tensors)),)

    def rerank(*tensors: Tensor) -> tuple[Tensor, ...]:
        return (model.rerank(*sides(tensors[:-1]), tensors[-1]),)

    both = inputs_of_both(image, text)
    files.write("image_encoder", model, encode_image, inputs_of(images), image_names)
    files.write("text_encoder", model, encode_text, inputs_of(texts), text_names)
    files.write("score", model, score, both, ["scores"])
    if model.has_second_stage:
        pairs = torch.tensor([[0, 0], [0, 3], [1, 2], [2, 1], [2, 0]])
        files.write("rerank", model, rerank, both | {"pairs": pairs}, ["scores"])


def inputs_of(part: Images | Texts) -> dict[str, Tensor]:
    """The tensors that an encoder reads, by their names."""
    names = ["features", "mask", "relations"]
    if isinstance(part, Texts):
        names = ["ids" if part.features is None else "features", "mask"]
    found = {name: getattr(part, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def inputs_of_both(image: Encoding, text: Encoding) -> dict[str, Tensor]:
    """The tensors that scores are made of, by their names."""
    sides = {"image": image, "text": text}
    return {f"{s}_{name}": value for s, one in sides.items() for name, value in one.items().items()}
