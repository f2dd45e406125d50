"""What matches in a gallery: by ids, by a matrix, or by judgements of its own, with grades."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from itmkit.checks import InputError, check_finite, check_shape, integer_vector, type_of
from itmkit.metrics.ranks import has_match, matching_pairs


@dataclass(frozen=True)
class Judgements:
    """Which captions match which images, by their ids: several for each, and some more than others.

    Information retrieval calls them qrels. They are given in place of ``relevance`` where the
    matches are few among many pairs, or where not every image and caption is a query. All items are
    searched; images and captions without a match are not queries.

    Args:
        pairs: ``(p, 2)`` int64, the id of an image and of a caption that match, each pair once.
        grades: ``(p,)`` how well each pair matches, finite and above 0; None: all the same.
        image_queries: ids of the images that are queries; None: all that have a match.
        caption_queries: ids of the captions that are queries; None: all that have a match.

    Raises:
        InputError: wrong shapes or types, no pairs, a pair that is there twice, or grades out of
            their range.

    Example:
        >>> Judgements(torch.tensor([[0, 0], [0, 1], [1, 1]]), torch.tensor([5.0, 3.0, 4.5]))
        Judgements(3 pairs, graded)
    """

    pairs: Tensor
    grades: Tensor | None = None
    image_queries: Tensor | None = None
    caption_queries: Tensor | None = None

    def __post_init__(self) -> None:
        pairs = _as_tensor("pairs", self.pairs)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0:
            raise InputError(f"pairs has the shape {tuple(pairs.shape)}; expected (p, 2), p > 0")
        columns = [integer_vector("pairs", column) for column in pairs.cpu().unbind(1)]
        pairs = torch.stack(columns, 1).long()
        object.__setattr__(self, "pairs", pairs)
        values, counts = pairs.unique(dim=0, return_counts=True)
        if len(values) < len(pairs):
            image, caption = values[counts > 1][0].tolist()
            raise InputError(f"pairs holds image {image} with caption {caption} twice")
        if self.grades is not None:
            grades = _as_tensor("grades", self.grades).cpu()
            check_shape((len(pairs),), grades=grades)
            object.__setattr__(self, "grades", checked_grades("grades", grades, above_0=True))
        for name in ("image_queries", "caption_queries"):
            if (ids := getattr(self, name)) is not None:
                object.__setattr__(self, name, integer_vector(name, ids).cpu())

    def __repr__(self) -> str:
        return f"Judgements({len(self.pairs)} pairs{'' if self.grades is None else ', graded'})"


class Matches(NamedTuple):
    """What matches in a gallery, by rows, and which images and captions are queries."""

    pairs: Tensor
    """``(p, 2)`` int64, the row of an image and of a caption that match."""
    grades: Tensor | None
    """``(p,)`` fp64, how well; None: all the same."""
    images: Tensor
    """``(n,)`` bool, which images are queries; each has a match."""
    captions: Tensor
    """``(m,)`` bool, which captions are."""

    @classmethod
    def of(cls, pairs: Tensor, shape: tuple[int, int], grades: Tensor | None = None) -> Matches:
        """Pairs of a gallery of so many images and captions; all that have a match are queries."""
        images, captions = (
            has_match(rows, count) for rows, count in zip(pairs.unbind(1), shape, strict=True)
        )
        return cls(pairs, grades, images, captions)

    def to(self, device: torch.device) -> Matches:
        """The same on a device."""
        grades = None if self.grades is None else self.grades.to(device)
        pairs, images, captions = (
            part.to(device) for part in (self.pairs, self.images, self.captions)
        )
        return Matches(pairs, grades, images, captions)


def find_matches(
    image_ids: Tensor,
    text_image_ids: Tensor,
    relevance: Tensor | Judgements | None = None,
    *,
    text_ids: Tensor | None = None,
) -> Matches:
    """What matches in a gallery.

    Args:
        image_ids: ``(n,)`` integers.
        text_image_ids: ``(m,)`` integers, the id of the image each caption belongs to.
        relevance: what matches, in place of equal ids: ``(n, m)`` bool; ``(n, m)`` grades, 0 for
            pairs that do not match; or :class:`Judgements`.
        text_ids: ``(m,)`` integers, by which judgements name the captions.

    Raises:
        InputError: a relevance of the wrong shape, type or range, no captions, or a caption
            without a match where there are no judgements.
    """
    shape = (len(image_ids), len(text_image_ids))
    if 0 in shape:
        raise InputError(f"there are {shape[0]} images and {shape[1]} captions; expected both")
    if isinstance(relevance, Judgements):
        if text_ids is None:
            raise InputError("relevance is Judgements without text_ids; expected both")
        return _judged(image_ids, text_ids, relevance)
    if relevance is not None and not isinstance(relevance, Tensor):
        raise InputError(
            f"relevance is {type_of(relevance)}; expected a tensor {shape} of bools or grades, or "
            "Judgements"
        )
    if relevance is None:
        found = Matches.of(matching_pairs(image_ids, text_image_ids), shape)
    elif relevance.dtype != torch.bool:
        check_shape(shape, relevance=relevance)
        grades = checked_grades("relevance", relevance)
        pairs = grades.nonzero()
        found = Matches.of(pairs, shape, grades[pairs[:, 0], pairs[:, 1]])
    else:
        check_shape(shape, relevance=relevance)
        found = Matches.of(relevance.nonzero(), shape)
    if not found.captions.all():
        row = int(found.captions.long().argmin())
        raise InputError(
            f"caption {row} (image id {int(text_image_ids[row])}) has no match in scores"
        )
    return found


def _judged(image_ids: Tensor, text_ids: Tensor, judged: Judgements) -> Matches:
    """Judgements of a gallery by its rows; those of items that it does not have are left out."""
    ids = image_ids.cpu().long(), text_ids.cpu().long()
    rows = [_rows_of(own, wanted) for own, wanted in zip(ids, judged.pairs.unbind(1), strict=True)]
    kept = (rows[0] >= 0) & (rows[1] >= 0)
    pairs = torch.stack(rows, 1)[kept]
    if len(pairs) == 0:
        raise InputError("relevance judges no pair of the gallery; expected one or more")
    grades = None if judged.grades is None else judged.grades[kept]
    found = Matches.of(pairs, (len(ids[0]), len(ids[1])), grades)
    images, captions = (
        have & (torch.ones_like(have) if queries is None else torch.isin(own, queries))
        for own, queries, have in (
            (ids[0], judged.image_queries, found.images),
            (ids[1], judged.caption_queries, found.captions),
        )
    )
    for name, queries in (("image_queries", images), ("caption_queries", captions)):
        if not queries.any():
            raise InputError(f"{name} has no query with a match in the gallery; expected one")
    return found._replace(images=images, captions=captions).to(image_ids.device)


def _rows_of(ids: Tensor, wanted: Tensor) -> Tensor:
    """The row of each wanted id, each there once; -1 where it is not there.

    Example:
        >>> _rows_of(torch.tensor([7, 3]), torch.tensor([3, 5, 7])).tolist()
        [1, -1, 0]
    """
    ordered, order = ids.sort()
    place = torch.searchsorted(ordered, wanted.contiguous()).clamp(max=len(ids) - 1)
    return order[place].where(ordered[place] == wanted, -1)


def _as_tensor(name: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {type_of(values)}; expected a tensor of numbers") from None


def checked_grades(name: str, grades: Tensor, *, above_0: bool = False) -> Tensor:
    """Grades as fp64."""
    if grades.dtype == torch.bool or grades.is_complex():
        raise InputError(f"{name} is {type_of(grades)}; expected numbers")
    grades = grades.detach().double()
    check_finite(grades, lambda *place: f"{name}{list(place)}")
    least = grades.min().item()
    if least < 0 or (above_0 and least == 0):
        expected = "numbers above 0" if above_0 else "grades of 0 or more"
        raise InputError(f"{name} holds {least:g}; expected {expected}")
    return grades
