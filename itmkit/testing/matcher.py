"""Checks of a system."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itmkit.checks import type_of
from itmkit.data.batch import Batch
from itmkit.data.padding import padded_regions, padded_texts, unpadded
from itmkit.retrieval import Encoding, evaluating
from itmkit.systems import Matcher
from itmkit.testing.batches import doubled
from itmkit.testing.expect import LARGEST_GRADIENT, expect
from itmkit.testing.processes import check_processes, loss_of, made


def check_matcher(
    make: Callable[[], Matcher], batch: Batch, *, processes: int = 2, pads_regions: bool = True
) -> None:
    """Check that a system keeps the laws: scores of pairs alone, any number of processes, numbers.

    Everything is computed in float64 on the CPU, but for the check of precision.

    Args:
        make: makes the system; called several times, each time with the same random seed.
        batch: a training batch of three or more images as the system's data gives it.
        processes: number of processes whose loss and gradients are compared with those of one;
            1 to leave that out.
        pads_regions: whether regions may be padded; False for a system with a fixed number.

    Raises:
        AssertionError: with the law that is broken.
    """
    matcher = made(make).double()
    double = doubled(batch)
    check_pairs_alone(matcher, double, pads_regions=pads_regions)
    _check_terms(matcher, double)
    _check_reload(make, double)
    _check_precision(made(make), batch)
    if processes > 1:
        check_processes(make, batch, processes=processes)


def check_pairs_alone(
    matcher: Matcher, batch: Batch, *, tolerance: float = 1e-8, pads_regions: bool = True
) -> None:
    """Check that the score of a pair depends on that image and that caption alone.

    Scores, and those of a second stage, are compared with those of each pair alone, of the batch
    in reverse order, with more padding that holds wrong numbers, of some rows, and of encodings
    that were joined from parts.

    Args:
        matcher: the system, of the precision of the batch.
        batch: any batch of it.
        tolerance: absolute, on scores.
        pads_regions: whether regions may be padded.

    Raises:
        AssertionError: with the scores that differ.
    """
    images, texts = batch.images, batch.texts
    n, m = len(images), len(texts)
    with evaluating(matcher):
        image, text = matcher.encode_image(images), matcher.encode_text(texts)
        for method, part in {"encode_image": image, "encode_text": text}.items():
            expect(isinstance(part, Encoding), f"{method} gives {type_of(part)}; expected Encoding")
        expect(len(image) == n, f"encode_image gives {len(image)} rows for {n} images")
        expect(len(text) == m, f"encode_text gives {len(text)} rows for {m} captions")
        expected = _table(matcher, image, text)
        dtypes = [value.dtype for value in matcher.parameters()]
        expect(
            expected.dtype == torch.float64 or torch.float64 not in dtypes,
            f"scores of a system in float64 are {expected.dtype}; expected torch.float64: raise a "
            "dtype to float32 with itmkit.precision.at_least_float32, and lower none",
        )
        spread = expected.flatten(0, 1).std(0).min() if n * m > 1 else torch.tensor(1.0)
        expect(bool(spread > 0), "all scores are equal: they say nothing of their pairs")

        def same(found: Tensor, wanted: Tensor, when: str) -> None:
            worst = float((found - wanted).abs().max())
            expect(worst <= tolerance, f"scores change by {worst:.3g} {when}")

        for i, j in [(0, 0), (n - 1, 0), (0, m - 1), (n // 2, m // 2)]:
            lone_image = matcher.encode_image(images.rows(slice(i, i + 1)))
            lone_text = matcher.encode_text(unpadded(texts, j))
            alone = _table(matcher, lone_image, lone_text)[0, 0]
            same(alone, expected[i, j], f"where image {i} and caption {j} are alone")
        turned = list(range(n))[::-1]
        other = _table(matcher, matcher.encode_image(images.rows(turned)), text)
        same(other[turned], expected, "with the order of the images")
        longer = matcher.encode_text(padded_texts(texts, 3))
        same(_table(matcher, image, longer), expected, "with the padding of the captions")
        if images.features.ndim == 3 and pads_regions:
            wider = matcher.encode_image(padded_regions(images, 2))
            same(_table(matcher, wider, text), expected, "with the padding of the regions")
        some = _table(matcher, image[[n - 1, 0]], text[[m - 1]])
        same(some, expected[[n - 1, 0]][:, [m - 1]], "in a smaller gallery")
        parts = [matcher.encode_text(unpadded(texts, j)) for j in range(m)]
        same(_table(matcher, image, Encoding.cat(parts)), expected, "where encodings are joined")


def _check_terms(matcher: Matcher, batch: Batch) -> None:
    matcher.train()
    terms = loss_of(matcher, batch)
    expect(isinstance(terms, dict), f"loss gives {type_of(terms)}; expected a dict of terms")
    expect("loss" in terms, f"loss gives {sorted(terms)}; expected a term 'loss'")
    for name, term in terms.items():
        expect(term.ndim == 0, f"the term {name!r} has the shape {tuple(term.shape)}")
        expect(bool(term.isfinite()), f"the term {name!r} is {term.item()}")
    matcher.zero_grad()
    terms["loss"].backward()
    norms = [p.grad.norm() for p in matcher.parameters() if p.grad is not None]
    expect(bool(norms), "no gradient reaches any parameter")
    norm = float(torch.stack(norms).norm())
    expect(norm <= LARGEST_GRADIENT, f"the norm of the gradient is {norm:.3g}")


def _check_reload(make: Callable[[], Matcher], batch: Batch) -> None:
    first, second = made(make).double(), make().double()
    second.load_state_dict(first.state_dict())
    tables = []
    for matcher in (first, second):
        with evaluating(matcher):
            sides = matcher.encode_image(batch.images), matcher.encode_text(batch.texts)
            tables.append(_table(matcher, *sides))
    expect(torch.equal(*tables), "scores differ after a state_dict round trip")


def _check_precision(matcher: Matcher, batch: Batch) -> None:
    matcher.train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss_of(matcher, batch)
        with evaluating(matcher):
            images, texts = matcher.encode_image(batch.images), matcher.encode_text(batch.texts)
            scores = matcher.score(images, texts)
    for name, term in terms.items():
        expect(term.dtype == torch.float32, f"under autocast the term {name!r} is {term.dtype}")
        expect(bool(term.isfinite()), f"under autocast the term {name!r} is {term.item()}")
    expect(
        scores.dtype == torch.float32,
        f"under autocast scores are {scores.dtype}; expected torch.float32, such as cosine_scores "
        "gives, or within itmkit.precision.autocast_off",
    )


def _table(matcher: Matcher, images: Encoding, texts: Encoding) -> Tensor:
    """Scores of all pairs ``(n, m, stages)``, of the second stage too where there is one."""
    scores = [matcher.score(images, texts)]
    expect(
        scores[0].shape == (len(images), len(texts)),
        f"score gives the shape {tuple(scores[0].shape)} for {len(images)} images and "
        f"{len(texts)} captions",
    )
    expect(bool(scores[0].isfinite().all()), "a score is not finite")
    if matcher.has_second_stage:
        pairs = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(texts)))
        scores.append(matcher.rerank(images, texts, pairs).view(scores[0].shape))
    return torch.stack(scores, dim=2)
