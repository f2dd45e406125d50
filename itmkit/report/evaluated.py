"""A run evaluated on a split, with all that a report shows of it: every score is kept."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.data import ImageTextData
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.images import BadSampleError
from itmkit.data.loader import EvaluationImages
from itmkit.data.photos import PhotoFolder, Photos, open_photos
from itmkit.evaluation.judgement_files import check_protocol
from itmkit.files import read_yaml
from itmkit.metrics.protocol import find_protocol, protocol_name
from itmkit.metrics.query_ranks import mean_recall
from itmkit.retrieval import (
    Encoding,
    Gallery,
    Protocol,
    QueryRanks,
    bootstrap_recall,
    encode,
    evaluating,
    rank_queries,
    score_matrix,
)
from itmkit.retrieval.score import second_stage
from itmkit.systems import Matcher, load_run
from itmkit.systems.explanation import Explanation

#: scores that are kept at most; a larger gallery is cut to its first images
MOST_SCORES = 200_000_000

Split = Literal["val", "test"]


class ScoreTable:
    """A matcher whose global scores are known: encodings hold row numbers."""

    def __init__(self, model: Matcher, gallery: Gallery, scores: Tensor) -> None:
        self.model, self.gallery, self.scores = model, gallery, scores
        self.rerank_top_k, self.rerank_weight, self.rerank_standardised = second_stage(
            model, None, None
        )
        self.device = torch.device("cpu")

    def modules(self) -> Iterator[nn.Module]:
        """Those of the matcher."""
        return self.model.modules()

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        """Scores of rows and columns of the table."""
        return self.scores[images.vector[:, 0]][:, texts.vector[:, 0]]

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        """Second-stage scores, by the matcher."""
        device = self.model.device
        return self.model.rerank(
            self.gallery.images[images.vector[:, 0]].to(device),
            self.gallery.texts[texts.vector[:, 0]].to(device),
            pairs.to(device),
        ).cpu()

    def rows(self) -> Gallery:
        """The gallery with row numbers in place of its encodings."""
        own = self.gallery
        images, texts = (torch.arange(len(side))[:, None] for side in (own.images, own.texts))
        ids = (own.image_ids, own.text_image_ids, own.text_ids)
        return Gallery(Encoding(vector=images), Encoding(vector=texts), *ids)


@dataclass
class EvaluatedRun:
    """A run, its scores on a split, and the pictures and sentences of that.

    Args:
        folder: of the run.
        split: ``"val"`` or ``"test"``.
        model: the system, in evaluation mode.
        data: its data.
        items: of the split, as they are loaded.
        table: all scores ``(n, m)`` of images and captions, and the gallery.
        relevant: ``(n, m)`` bool, which captions are true of which images.
        whole: images of the split, of which the gallery may have the first ones alone.
        protocol: name of it; None: all is searched together.
        ranks: of the queries, fold by fold.
        photos: for a run that knows features of them alone.
    """

    folder: Path
    split: str
    model: Matcher
    data: ImageTextData
    items: EvaluationImages
    table: ScoreTable
    relevant: Tensor
    whole: int
    protocol: str | None
    ranks: list[QueryRanks]
    photos: Photos | None = None

    @classmethod
    def of(
        cls,
        folder: Path,
        split: Split,
        *,
        protocol: Protocol | str | int | None = None,
        photos: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> EvaluatedRun:
        """Encode and score a split of a run.

        Raises:
            FileNotFoundError: the run, its checkpoint, its data or one of the photos is gone.
            InputError: it has no such split, or that does not fit the protocol.
        """
        if find_protocol(protocol).judgements is not None:
            raise InputError(
                f"protocol is {protocol!r}, whose judgements a report does not show; expected one "
                "without, or itmkit test"
            )
        model, data = load_run(folder)
        model.to(device)
        loader: Any = data.evaluation_dataloader(data.evaluated_split(split))
        items: EvaluationImages = loader.dataset
        dataset = items.dataset
        if protocol is not None:
            check_protocol(protocol, dataset)
        pictures = None if photos is None else open_photos(dataset.split, dataset.names, photos)
        gallery = encode(model, loader)
        whole = len(gallery.images)
        n = max(1, min(whole, MOST_SCORES // max(1, len(gallery.texts))))
        if n < whole:
            own = torch.isin(gallery.text_image_ids, gallery.image_ids[:n]).nonzero()[:, 0]
            gallery = gallery.part(torch.arange(n), own)
        scores = score_matrix(model, gallery.images, gallery.texts)
        relevant = items.relevance(gallery.image_ids, gallery.text_ids)
        if relevant is None:
            relevant = gallery.image_ids[:, None] == gallery.text_image_ids
        table = ScoreTable(model, gallery, scores)
        ranks = rank_queries(
            table, table.rows(), protocol=protocol, relevance=relevant, chunk_size=4096
        )
        name = protocol_name(protocol)
        return cls(folder, split, model, data, items, table, relevant, whole, name, ranks, pictures)

    @property
    def dataset(self) -> ImageTextDataset:
        """The split."""
        return self.items.dataset

    @cached_property
    def recall(self) -> dict[str, float]:
        """The mean over the folds."""
        return mean_recall([fold.recall() for fold in self.ranks])

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals: queries resampled, gallery fixed."""
        return bootstrap_recall(self.ranks)

    @cached_property
    def positives(self) -> tuple[Tensor, Tensor]:
        """Score of the best match of every image (-inf: none) and of every caption."""
        own = self.table.scores.masked_fill(~self.relevant, -torch.inf)
        return own.amax(1), own.amax(0)

    @cached_property
    def wrong_scores(self) -> Tensor:
        """The table with -inf for pairs that match."""
        return self.table.scores.masked_fill(self.relevant, -torch.inf)

    @cached_property
    def negatives(self) -> tuple[Tensor, Tensor]:
        """Score of the best item that does not match, of every image and of every caption."""
        return self.wrong_scores.amax(1), self.wrong_scores.amax(0)

    @cached_property
    def query_ranks(self) -> tuple[Tensor, Tensor]:
        """Ranks among all items of the images (-1: no query) and of the captions."""
        found = self.ranks
        if len(found) > 1:
            found = rank_queries(
                self.table, self.table.rows(), relevance=self.relevant, chunk_size=4096
            )
        images = torch.full((len(self.relevant),), -1)
        images[self.relevant.any(1)] = found[0].i2t.cpu()
        return images, found[0].t2i.cpu()

    def caption(self, column: int) -> str:
        """The sentence of a column of the table."""
        return self.dataset.captions[int(self.table.gallery.text_ids[column])]

    def name(self, row: int) -> str:
        """File name or id of the image of a row of the table."""
        return self.dataset.names[int(self.table.gallery.image_ids[row])]

    def picture(self, row: int) -> Path | Image.Image | None:
        """The picture of a row; None where the run knows features alone, or it is not readable."""
        image = int(self.table.gallery.image_ids[row])
        drawn = getattr(self.dataset, "pixels", None)
        if drawn is not None and self.photos is None:
            return Image.fromarray(drawn(image))
        source = self._photos.source if self.photos is None else self.photos
        if isinstance(source, PhotoFolder):
            return source.place(image)
        try:
            return source.photo(image) if isinstance(source, Photos) else None
        except BadSampleError:
            return None

    @cached_property
    def _photos(self) -> ImageTextDataset:
        """The split with its photos, where the model is given features that were made of them."""
        if isinstance(self.dataset.source, Photos) or not hasattr(self.data, "image_model"):
            return self.dataset
        return self.data.dataset(self.dataset.split)

    def explained(self, row: int, column: int) -> tuple[list[Explanation], Tensor | None]:
        """Explanations of a pair, and the boxes of its regions."""
        gallery, items = self.table.gallery, self.items
        batch = items.received(items.__getitems__([int(gallery.image_ids[row])]))
        if batch is None:
            raise InputError(f"{self.name(row)} cannot be read")
        boxes = batch.images.boxes
        text = gallery.texts[column]
        with evaluating(self.model):
            image = encode(self.model, [batch]).images.to(self.model.device)
            found = self.model.explain(image, text.to(self.model.device))
        return found, None if boxes is None else boxes[0]


def curves_of(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every number that training logged; empty without ``metrics.csv``."""
    path = folder / "metrics.csv"
    curves: dict[str, tuple[list[int], list[float]]] = {}
    if not path.is_file():
        return curves
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            step = line.get("step")
            for name, value in line.items():
                if step and value and name not in ("step", "epoch") and isinstance(value, str):
                    try:
                        point = int(float(step)), float(value)
                    except ValueError:  # a line that was being written when the run was stopped
                        continue
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(point[0])
                    values.append(point[1])
    return curves


def flat_config(folder: Path) -> dict[str, str]:
    """The configuration of a run as dotted names with their values."""
    flat: dict[str, str] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else str(key))
        else:
            flat[name] = str(value)

    walk(read_yaml(folder / "config.yaml"), "")
    return flat
