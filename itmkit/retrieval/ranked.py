"""A gallery that was scored by both stages: its ranks, best items and list metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from itmkit.metrics.judgements import Matches
from itmkit.metrics.list_metrics import (
    ListMetrics,
    items_ahead,
    metrics_of_lists,
    order_of_ties,
)
from itmkit.metrics.query_ranks import BestItems, QueryRanks, query_ranks
from itmkit.metrics.ranks import Ranks, tied_from
from itmkit.retrieval.blend import blend
from itmkit.retrieval.candidates import Candidates
from itmkit.retrieval.encode import Gallery
from itmkit.retrieval.score import SecondStage


class RankedSide(NamedTuple):
    """All images with the captions that were found for them, or the other way round."""

    ranks: Ranks
    """By global scores, of ``q`` rows."""
    found: Candidates
    """Their best items by global scores, as many as are wanted."""
    second: Tensor
    """``(q, k)`` pair scores of the first of these, of as many as a second stage may put in order;
    ``k`` may be 0."""
    match: Tensor
    """bool ``(q, k)``, which of these match."""

    def by(self, stage: SecondStage) -> Ranks:
        """Ranks after the first ``top_k`` candidates took the order of the blended score."""
        if not self._reranked(stage):
            return self.ranks
        candidates, blended = self.found.first(stage.top_k), self._blended(stage)
        match, ranks = self.match[:, : stage.top_k], self.ranks
        left_out = candidates.left_out[:, None]

        def best_of(secure: Tensor) -> Tensor:
            return blended.masked_fill(~secure, -torch.inf).amax(1)

        def count(secure: Tensor, least: Tensor, before: Tensor) -> Tensor:
            inside = ((blended >= least[:, None]) & ~match).sum(1)
            return torch.where(secure.any(1), inside, before.to(inside.device))

        secure = match & (tied_from(candidates.scores) > left_out)
        above = match & (candidates.scores > left_out)
        best = best_of(secure)
        return Ranks(
            count(secure, tied_from(best), ranks.ranks),
            count(above, best_of(above), ranks.exact),
            torch.where(secure.any(1), best, ranks.best.to(best.device)),
        )

    def best_items(self, matches: Tensor, ids: Tensor, stage: SecondStage) -> BestItems:
        """Items by their ids, and which of them match, on the CPU.

        Args:
            matches: ``(p, 2)`` int64, the rows of a query and of an item that match.
            ids: of the items, by their rows.
            stage: what puts the first ones in order.
        """
        found = self.found
        if self._reranked(stage):
            found = found.reordered(self._blended(stage))
        rows, count = found.rows.cpu(), len(ids)
        keys = torch.arange(len(rows))[:, None] * count + rows  # a whole number for each pair
        match = torch.isin(keys, matches[:, 0] * count + matches[:, 1])
        return BestItems(ids[rows], found.scores.cpu(), match, min(stage.top_k, count))

    def list_metrics(
        self, matches: Tensor, grades: Tensor | None, stage: SecondStage
    ) -> ListMetrics:
        """List metrics of all queries, on the CPU.

        Args:
            matches: ``(p, 2)`` int64, the rows of a query and of an item that match.
            grades: ``(p,)`` how well.
            stage: what puts the first ones in order.
        """
        grades = torch.ones(len(matches), dtype=torch.float64) if grades is None else grades
        found = self.found
        rows, scores, left_out = (part.cpu() for part in (found.rows, found.scores, found.left_out))
        count = int(max(rows.max(), matches[:, 1].max())) + 1
        keys = torch.arange(len(rows))[:, None] * count + rows  # a whole number for each pair
        known, order = (matches[:, 0] * count + matches[:, 1]).sort()
        place = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
        own = grades[order][place].where(known[place] == keys, 0.0)
        ahead, place = items_ahead(scores, own, left_out), order_of_ties(scores, own).argsort(dim=1)
        if self._reranked(stage):
            candidates = found.first(stage.top_k)
            blended, order = self._blended(stage).cpu().sort(dim=1, descending=True, stable=True)
            k = blended.shape[1]
            head = own.gather(1, order)
            first = items_ahead(blended, head, torch.full_like(left_out, -torch.inf))
            ties = order.gather(1, order_of_ties(blended, head))
            # As in by(): what is a candidate by chance alone keeps its place.
            secure = (tied_from(candidates.scores) > candidates.left_out[:, None]).cpu()
            ahead[:, :k] = ahead[:, :k].scatter(1, order, first).where(secure, ahead[:, :k])
            place[:, :k] = ties.argsort(dim=1).where(secure, k + place[:, :k])
            place[:, k:] += k
        order = place.argsort(dim=1)
        return metrics_of_lists(own.gather(1, order), ahead.gather(1, order), matches[:, 0], grades)

    def _reranked(self, stage: SecondStage) -> bool:
        return stage.top_k > 0 and self.second.shape[1] > 0

    def _blended(self, stage: SecondStage) -> Tensor:
        """Blended scores of the first ``top_k`` candidates."""
        second = self.second[:, : stage.top_k]
        first = self.found.scores[:, : second.shape[1]]
        return blend(first, second, stage.weight, standardised=stage.standardised)


class RankedGallery(NamedTuple):
    """Both directions of a gallery, for any number of candidates and weight of the second stage."""

    gallery: Gallery
    matches: Matches
    """What matches, by rows, and what is a query."""
    i2t: RankedSide
    """Of images."""
    t2i: RankedSide
    """Of captions."""
    keep: bool
    """Whether the ranks hold the best items."""
    lists: bool
    """Whether they hold the list metrics."""

    def ranks(self, stage: SecondStage) -> tuple[Ranks, Ranks]:
        """The ranks of all images, and of all captions."""
        return self.i2t.by(stage), self.t2i.by(stage)

    def query_ranks(self, stage: SecondStage) -> QueryRanks:
        """The ranks of all queries, with their best items and list metrics where wanted."""
        own, matches = self.gallery, self.matches.to(torch.device("cpu"))
        image_ids, text_ids = own.image_ids.cpu(), own.text_ids.cpu()
        ranks = query_ranks(*self.ranks(stage), self.matches, own.image_ids, own.text_image_ids)
        ranks = replace(ranks, text_ids=text_ids[matches.captions])
        pairs, grades, reversed_pairs = matches.pairs, matches.grades, matches.pairs.flip(1)
        if self.lists:
            ranks = replace(
                ranks,
                i2t_lists=self.i2t.list_metrics(pairs, grades, stage).of(matches.images),
                t2i_lists=self.t2i.list_metrics(reversed_pairs, grades, stage).of(matches.captions),
            )
        if self.keep:
            rows, columns = pairs.unbind(1)
            captions = self.t2i.best_items(reversed_pairs, image_ids, stage).of(matches.captions)
            ranks = replace(
                ranks,
                i2t_best=self.i2t.best_items(pairs, text_ids, stage).of(matches.images),
                t2i_best=captions,
                pairs=torch.stack([image_ids[rows], text_ids[columns]], 1),
                grades=grades,
            )
        return ranks
