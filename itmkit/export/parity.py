"""Whether ONNX files compute what a matcher does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.data.batch import Images, Texts
from itmkit.data.padding import padded_regions, padded_texts, unpadded
from itmkit.export.matcher_files import inputs_of, inputs_of_both
from itmkit.export.onnx_files import OnnxFiles
from itmkit.retrieval import Encoding
from itmkit.systems.matcher import Matcher

TOLERANCE = 1e-4
_TOP = 10


class Parity:
    """Compares a matcher with its files; raises where they differ.

    Args:
        model: the matcher.
        files: that it was written to.

    Attributes:
        largest: difference that was found, of the largest value where that is above 1.
    """

    def __init__(self, model: Matcher, files: OnnxFiles) -> None:
        self.model = model
        self.files = files
        self.largest = 0.0

    def of_batch(self, what: str, images: Images, texts: Texts) -> dict[str, Any]:
        """The encodings of a batch, and their scores, by both."""
        before, self.largest = self.largest, 0.0
        image, text = self._encoded(images, texts)
        inputs = inputs_of_both(image, text)
        (scores,) = self.files.call("score", inputs)
        self._check("score", scores, self.model.score(image, text))
        if "rerank" in self.files:
            rows = [[i, j] for i in range(len(image)) for j in range(len(text))]
            pairs = torch.tensor(rows[:: max(1, len(rows) // 64)])
            (found,) = self.files.call("rerank", inputs | {"pairs": pairs})
            self._check("rerank", found, self.model.rerank(image, text, pairs))
        found_here, self.largest = self.largest, max(before, self.largest)
        return {
            "what": what,
            "images": list(images.features.shape[:2]),
            "texts": list(texts.mask.shape),
            "largest_difference": found_here,
        }

    def _encoded(self, images: Images, texts: Texts) -> tuple[Encoding, Encoding]:
        """Encodings by the files, checked against those of the model."""
        found = []
        for name, given, right in (
            ("image_encoder", images, self.model.encode_image(images).items()),
            ("text_encoder", texts, self.model.encode_text(texts).items()),
        ):
            values = dict(zip(right, self.files.call(name, inputs_of(given)), strict=True))
            for field, value in values.items():
                self._check(f"{name} {field}", value, right[field])
            found.append(Encoding(**values))
        return found[0], found[1]

    def _check(self, what: str, found: Tensor, right: Tensor) -> None:
        """Raise unless the two agree."""
        if found.shape != right.shape:
            raise InputError(
                f"the ONNX file of {what} gives {tuple(found.shape)}, the model "
                f"{tuple(right.shape)}: nothing is written"
            )
        size = max(1.0, float(right.float().abs().amax())) if right.numel() else 1.0
        apart = float((found.float() - right.float()).abs().amax()) / size if right.numel() else 0
        if not apart <= TOLERANCE:
            raise InputError(
                f"the ONNX file of {what} differs from the model by {apart:.2g}; expected at most "
                f"{TOLERANCE}: nothing is written"
            )
        self.largest = max(self.largest, apart)

    def of_gallery(self, batches: Sequence[tuple[Images, Texts]]) -> dict[str, Any]:
        """The ten best of every query among all examples, by both."""
        pairs = [self._encoded(*batch) for batch in batches]
        image, text = (Encoding.cat([pair[side] for pair in pairs]) for side in (0, 1))
        inputs = inputs_of_both(image, text)
        (found,) = self.files.call("score", inputs)
        images = Encoding.cat([self.model.encode_image(batch[0]) for batch in batches])
        texts = Encoding.cat([self.model.encode_text(batch[1]) for batch in batches])
        right = self.model.score(images, texts)
        self._check("score of the gallery", found, right)
        for ours, theirs, query in ((found, right, "image"), (found.T, right.T, "caption")):
            check_best(ours, theirs, query)
        return {"images": len(image), "texts": len(text), "top": _TOP}


def check_best(found: Tensor, right: Tensor, query: str) -> None:
    """Raise unless the ten best of every row are the same, but for ties within the tolerance.

    Raises:
        InputError: with the row.
    """
    k = min(_TOP, right.shape[1])
    margin = TOLERANCE * max(1.0, float(right.abs().amax()))
    best = right.topk(k).values
    # What is chosen in place k must have, in the model, the score of its place k.
    chosen = right.gather(1, found.topk(k).indices)
    wrong = ((chosen - best).abs() > margin).any(1)
    if wrong.any():
        raise InputError(
            f"the ONNX files rank other results best for {query} {int(wrong.nonzero()[0])} than "
            "the model: nothing is written"
        )


def cases(images: Images, texts: Texts) -> list[tuple[str, Images, Texts]]:
    """A batch as it is; one image and one caption of it; all with more padding."""
    wider = images if images.mask is None else padded_regions(images, 2)
    return [
        ("batch", images, texts),
        ("one", images.rows(slice(1)), unpadded(texts, 0)),
        ("padded", wider, padded_texts(texts, 1)),
    ]
