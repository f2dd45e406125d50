"""Several models as one: their scores, each in units of its own spread, averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, check_finite, type_of
from itmkit.chunks import evenly_spaced
from itmkit.retrieval.blend import Scale
from itmkit.retrieval.encode import Gallery, evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.model import RetrievalModel
from itmkit.retrieval.score import pair_scores, score_block, score_matrix, second_stage

if TYPE_CHECKING:
    from itmkit.data.batch import Images, Texts

_SAMPLE = (500, 2500)  # images and captions whose scores give mean and spread
_CHUNK = 256


class Ensemble:
    """Models whose standardised scores are averaged, as one model.

    The systems may differ, and read the same images and captions in different forms: each has its
    own encodings of them. A model's scores are standardised by their mean and standard deviation
    over at most 500 images × 2,500 captions of the gallery, evenly spaced. So a score does not
    depend on what it is computed beside, but it does on the gallery. Published ensembles of SGR and
    SAF average raw similarities, which are in [0, 1] in both; here each is standardised before.

    The second stage is that of the models that have one: its scores, standardised by those of some
    right and wrong pairs, averaged. It puts as many candidates in order as that of the model with
    most, with the mean of the weights, a model without a second stage counting as 0.

    Args:
        models: two or more.
        galleries: of each model, encodings of the same images and captions.

    Attributes:
        gallery: to be given to :func:`itmkit.retrieval.evaluate` and others with this model.

    Raises:
        InputError: fewer than two models, galleries of other images or captions, or scores that
            are not finite.

    Example:
        ``model = Ensemble([sgr, saf], [encode(sgr, loader), encode(saf, loader)])``, then
        ``evaluate(model, model.gallery)``.
    """

    #: pair scores are brought to the scale of the global ones
    rerank_standardised = True

    def __init__(self, models: Sequence[RetrievalModel], galleries: Sequence[Gallery]) -> None:
        for name, parts in (("models", models), ("galleries", galleries)):
            if not isinstance(parts, Sequence):
                raise InputError(f"{name} is {type_of(parts)}; expected a list of two or more")
        for number, own in enumerate(galleries):
            if not isinstance(own, Gallery):
                raise InputError(f"galleries[{number}] is {type_of(own)}; expected a Gallery")
        if len(models) < 2 or len(models) != len(galleries):
            raise InputError(
                f"models has {len(models)} and galleries {len(galleries)}; expected two or more, "
                "and as many"
            )
        self.models = list(models)
        self.galleries = [Gallery.cat([gallery]) for gallery in galleries]  # in one order
        first = self.galleries[0]
        for number, other in enumerate(self.galleries):
            for name in ("image_ids", "text_ids", "text_image_ids"):
                if not torch.equal(getattr(first, name), getattr(other, name)):
                    raise InputError(
                        f"galleries[{number}] differs in {name}; expected the images and captions "
                        "of galleries[0]"
                    )
        rows, columns = torch.arange(len(first.images)), torch.arange(len(first.texts))
        self.gallery = Gallery(
            Encoding(row=rows),
            Encoding(row=columns),
            first.image_ids,
            first.text_image_ids,
            first.text_ids,
            first.names,
            first.captions,
        )
        stages = [second_stage(model, None, None) for model in self.models]
        self.rerank_top_k = max(stage.top_k for stage in stages)
        weights = [stage.weight if stage.top_k else 0.0 for stage in stages]
        self.rerank_weight = sum(weights) / len(weights)
        self._reranking = [place for place, stage in enumerate(stages) if stage.top_k]
        self._scales = [self._scale(place) for place in range(len(self.models))]
        self._pair_scales = {place: self._pair_scale(place) for place in self._reranking}

    @property
    def device(self) -> torch.device:
        """Where scores are compared; each model computes where it is."""
        return self.models[0].device

    def modules(self) -> Iterator[nn.Module]:
        """All modules of all models."""
        return (module for model in self.models for module in model.modules())

    def encode_image(self, images: Images) -> Encoding:
        """Not there: each model encodes its own form of the images."""
        raise InputError("an Ensemble does not encode; expected its gallery")

    def encode_text(self, texts: Texts) -> Encoding:
        """Not there: each model encodes its own form of the captions."""
        raise InputError("an Ensemble does not encode; expected its gallery")

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        """The mean of the standardised scores, ``(n, m)`` fp32."""
        if any("row" not in part.items() for part in (images, texts)):
            raise InputError(
                "images or texts have no field row; expected those of Ensemble.gallery"
            )
        found = []
        for model, gallery, scale in zip(self.models, self.galleries, self._scales, strict=True):
            own = gallery.images[images.row.cpu()].to(model.device)
            captions = gallery.texts[texts.row.cpu()].to(model.device)
            found.append(scale.standardise(score_block(model, own, captions)).to(self.device))
        return torch.stack(found).mean(0)

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        """The mean of the standardised second-stage scores, ``(p,)`` fp32."""
        if not self._reranking:
            raise InputError("top_k is not 0; expected 0: no model has a second stage")
        rows = torch.stack([images.row[pairs[:, 0]], texts.row[pairs[:, 1]]], 1).cpu()
        found = [
            self._pair_scales[place].standardise(self._pairs(place, rows))
            for place in self._reranking
        ]
        return torch.stack([scores.to(self.device) for scores in found]).mean(0)

    def _pairs(self, place: int, rows: Tensor) -> Tensor:
        model, gallery = self.models[place], self.galleries[place]
        return pair_scores(model, gallery.images, gallery.texts, rows, chunk_size=_CHUNK)

    def _scale(self, place: int) -> Scale:
        """Mean and spread of the scores of a model."""
        parts = self.galleries[place].images, self.galleries[place].texts
        rows, columns = (
            torch.tensor(evenly_spaced(len(part), most), dtype=torch.int64)
            for part, most in zip(parts, _SAMPLE, strict=True)
        )
        sample = parts[0][rows], parts[1][columns]
        scores = score_matrix(self.models[place], *sample, chunk_size=_CHUNK)
        check_finite(
            scores,
            lambda i, j: (
                f"models[{place}].score of image row {int(rows[i])} and caption row "
                f"{int(columns[j])}"
            ),
        )
        return Scale.of(scores)

    def _pair_scale(self, place: int) -> Scale:
        """Mean and spread of the second-stage scores of captions with their image and another."""
        ids, owners = self.gallery.image_ids, self.gallery.text_image_ids
        columns = torch.tensor(evenly_spaced(len(owners), _SAMPLE[0]), dtype=torch.int64)
        own = torch.searchsorted(ids, owners[columns]).clamp(max=len(ids) - 1)
        rows = torch.stack([torch.cat([own, (own + 1) % len(ids)]), columns.repeat(2)], 1)
        with evaluating(self.models[place]):
            return Scale.of(self._pairs(place, rows))
