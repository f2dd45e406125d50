"""From the scores of hits to the probability that they are right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import InputError, check_shape

HITS = 10  # of a query, from which the probabilities are learnt
LEAST_QUERIES = 50
_BINS = 10
_TELLING = 0.25  # coverage at which a low probability says that nothing matches


@dataclass(frozen=True)
class Calibration:
    """A logistic regression from the scores of a query's best hits to "this hit is right".

    It reads the score of the hit, how far it stands above the best of the others, or below it, and
    how far above the mean of the :data:`HITS` best: scores of the first stage, as a second stage
    changes the order of hits alone. It is learnt on queries whose right images are known: each once
    with them in the gallery and once without, as in a search nobody knows whether there is anything
    to find.

    Args:
        weights: of the three, and the constant.
        gallery_size: images that were searched; the probabilities hold for about as many.
        threshold: probability below which "nothing matches" is said.
        precision: share of the best hits above the threshold that were right, on queries that the
            weights were not learnt on.
        coverage: share of those queries, of such with something to find, whose best hit was above
            the threshold.
        reliability: of the same queries' hits, by tenth of the estimated probability: its mean,
            the share that was right, and the number of hits.
    """

    weights: tuple[float, float, float, float]
    gallery_size: int
    threshold: float
    precision: float
    coverage: float
    reliability: list[tuple[float, float, int]] = field(default_factory=list)

    @classmethod
    def fit(cls, scores: Tensor, right: Tensor, *, threshold: float = 0.5) -> Self:
        """Learn from every other query, and judge by the rest.

        Args:
            scores: ``(q, n)`` of queries and images, finite.
            right: ``(q, n)`` bool, which images are right for a query.
            threshold: see above, in (0, 1).

        Raises:
            InputError: if there are fewer than :data:`LEAST_QUERIES` queries with a right image, or
                fewer than two images.
        """
        check_shape(tuple(scores.shape), right=right)
        if not 0 < threshold < 1:
            raise InputError(f"threshold is {threshold}; expected a probability in (0, 1)")
        useful = right.any(dim=1) & ~right.all(dim=1)
        if int(useful.sum()) < LEAST_QUERIES:
            raise InputError(
                f"{int(useful.sum())} queries have right and wrong images; expected "
                f"{LEAST_QUERIES} or more to estimate probabilities"
            )
        scores, right = scores[useful].double(), right[useful]
        found = []  # the best hits of each query with its right images, and without
        for offered in (scores, scores.masked_fill(right, -torch.inf)):
            best = offered.topk(min(HITS, scores.shape[1]), dim=1)
            there = best.values.isfinite()
            found.append((best.values, right.gather(1, best.indices) & there, there))
        learnt = [tuple(part[::2] for part in kind) for kind in found]
        judged = [tuple(part[1::2] for part in kind) for kind in found]
        weights = _regression(
            torch.cat([_features(values)[there] for values, _, there in learnt]),
            torch.cat([own[there] for _, own, there in learnt]),
        )
        probabilities = [_probabilities(values, weights) for values, _, _ in judged]
        above = [best[:, 0] >= threshold for best in probabilities]
        correct = int((above[0] & judged[0][1][:, 0]).sum())
        named = int(torch.cat(above).sum())
        estimated = torch.cat([p[j[2]] for p, j in zip(probabilities, judged, strict=True)])
        truth = torch.cat([own[there] for _, own, there in judged])
        return cls(
            weights=tuple(weights.tolist()),
            gallery_size=scores.shape[1],
            threshold=threshold,
            precision=correct / named if named else 0.0,
            coverage=float(above[0].double().mean()),
            reliability=_reliability(estimated, truth),
        )

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities ``(k,)`` of a query's hits, from their scores, best first.

        Args:
            scores: ``(k,)``, :data:`HITS` or more where the gallery has as many.
        """
        return _probabilities(scores.double()[None], torch.tensor(self.weights).double())[0].float()

    def verdict(self, probability: float) -> str:
        """That nothing matches, where the largest probability of a hit says so; else empty.

        A model that seldom reaches the threshold, also where there is something to find, cannot
        tell: then that no hit is sure.
        """
        if probability >= self.threshold:
            return ""
        what = "nothing matches" if self.coverage >= _TELLING else "no hit is sure"
        return (
            f"{what}: no hit is right with a probability of {self.threshold:.0%} or more. "
            f"At that limit {self.precision:.0%} of the best hits were right and "
            f"{self.coverage:.0%} of what was there was found, on queries held out of validation, "
            f"half of them with nothing to find, among {self.gallery_size} images"
        )

    def to_dict(self) -> dict[str, Any]:
        """As numbers, strings and lists, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        numbers = {**content, "weights": tuple(content["weights"])}
        return cls(**{**numbers, "reliability": [tuple(b) for b in content["reliability"]]})


def _features(scores: Tensor) -> Tensor:
    """``(q, k, 3)`` of scores ``(q, k)``, best first; missing ones are -inf."""
    head = scores[:, :HITS]
    there = head.isfinite()
    mean = head.where(there, 0).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    rival = scores[:, :1].expand_as(scores).clone()
    if scores.shape[1] > 1:
        rival[:, 0] = scores[:, 1].where(scores[:, 1].isfinite(), scores[:, 0])
    return torch.stack([scores, scores - rival, scores - mean], dim=-1)


def _probabilities(scores: Tensor, weights: Tensor) -> Tensor:
    logits = _features(scores) @ weights[:3] + weights[3]
    return logits.sigmoid().nan_to_num(0.0)


def _regression(features: Tensor, right: Tensor) -> Tensor:
    """Weights of the features and the constant, ``(4,)``."""
    mean, std = features.mean(0), features.std(0).clamp(min=1e-9)
    inputs = (features - mean) / std
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weights[:3] + weights[3]
        penalty = 1e-4 * weights[:3].square().sum()
        loss = F.binary_cross_entropy_with_logits(logits, right.double()) + penalty
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    scaled = weights.detach()[:3] / std
    return torch.cat([scaled, (weights.detach()[3] - scaled @ mean)[None]])


def _reliability(estimated: Tensor, right: Tensor) -> list[tuple[float, float, int]]:
    tenth = (estimated * _BINS).long().clamp(max=_BINS - 1)
    bins = []
    for place in range(_BINS):
        own = tenth == place
        if own.any():
            share = float(right[own].double().mean())
            bins.append((float(estimated[own].mean()), share, int(own.sum())))
    return bins
