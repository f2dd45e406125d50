"""How a system is evaluated by a Trainer, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from itmkit.metrics.query_ranks import QueryRanks, recall_of_folds
from itmkit.retrieval import Gallery, Judgements, Protocol, fit_second_stage, rank_queries

if TYPE_CHECKING:
    from itmkit.systems.matcher import Matcher


class Evaluation:
    """Recall of what a Trainer's evaluation has encoded, and a fit of the second stage to it.

    Args:
        protocol: which images and captions of a split are searched together; see
            :func:`itmkit.retrieval.rank_queries`.
        judgements: what matches, where the protocol has judgements of its own.
        keep: how many of the best items of each query its ranks hold.

    Attributes:
        gallery_size: numbers of images and of captions that were last evaluated, of the first
            dataloader.
        query_ranks: the ranks of its queries, fold by fold.
    """

    def __init__(
        self,
        protocol: Protocol | str | int | None = None,
        judgements: Judgements | None = None,
        keep: int = 0,
    ) -> None:
        self.protocol = protocol
        self.judgements = judgements
        self.keep = keep
        self.gallery_size = (0, 0)
        self.query_ranks: list[QueryRanks] = []
        self._encoded: dict[int, list[Gallery]] = {}

    def add(self, batch: Gallery, dataloader: int) -> None:
        """Take the encodings of a batch."""
        self._encoded.setdefault(dataloader, []).append(batch)

    def log_recall(self, matcher: Matcher, stage: str, loaders: Any) -> None:
        """Recall on all that was added since the last call, by all processes, each sample once.

        Args:
            matcher: that encoded it, and logs the recall.
            stage: prefix of what is logged.
            loaders: the Trainer's dataloaders.
        """
        encoded, self._encoded = self._encoded, {}
        if isinstance(loaders, Mapping):
            loaders = list(loaders.values())
        for index, loader in enumerate(loaders if isinstance(loaders, Sequence) else [loaders]):
            gallery = Gallery.gathered(encoded.get(index, []))
            folds = self._rank(matcher, gallery, loader, fits=index == 0)
            if index == 0:
                self.gallery_size = (len(gallery.images), len(gallery.texts))
                self.query_ranks = folds
            suffix = f"/dataloader_idx_{index}" if index else ""
            # the same on every process: no synchronisation
            for name, value in recall_of_folds(folds).items():
                matcher.log(
                    f"{stage}/{name}{suffix}",
                    value,
                    prog_bar=name == "rsum",
                    add_dataloader_idx=False,  # it is in the name
                )

    def _rank(
        self, matcher: Matcher, gallery: Gallery, loader: Any, *, fits: bool
    ) -> list[QueryRanks]:
        source = getattr(loader.dataset, "relevance", None)
        relevance = source and source(gallery.image_ids, gallery.text_ids)
        gallery = gallery.to(matcher.device)
        precision = matcher.trainer.precision_plugin
        mixed = isinstance(precision, MixedPrecision)
        training, trained = matcher.trainer.state.fn == "fit", matcher.second_stage_is_trained
        with precision.forward_context() if mixed else nullcontext():  # as they were encoded
            if fits and training and trained and matcher.rerank_most is not None:
                ranks = _fit_second_stage(matcher, gallery, relevance, matcher.rerank_most)
                if self.protocol is None:
                    return [ranks]
            return rank_queries(
                matcher,
                gallery,
                protocol=self.protocol,
                relevance=relevance if self.judgements is None else self.judgements,
                top_k=0 if training and not trained else None,
                keep=self.keep,
                shared=True,
            )


def _fit_second_stage(
    matcher: Matcher, gallery: Gallery, relevance: Tensor | None, most: int
) -> QueryRanks:
    """Take the numbers that are best on half of the queries; log what they do on the others."""
    fitted = fit_second_stage(matcher, gallery, top_k=most, relevance=relevance, shared=True)
    matcher.rerank_top_k, matcher.rerank_weight = fitted.top_k, fitted.weight
    stages = {"first_stage": fitted.first_stage, "both_stages": fitted.both_stages}
    for stage, recall in stages.items():
        for name in ("i2t_r1", "t2i_r1", "rsum"):
            matcher.log(f"val/held_out/{stage}_{name}", recall[name], add_dataloader_idx=False)
    return fitted.ranks
