"""Cosines too many to be held at once: in tiles of rows, which backward computes again.

Beside the vectors and their gradients, memory is that of some tiles and of one number a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from itmkit.losses.scores import Costs
from itmkit.precision import autocast_off
from itmkit.vectors import inverse_norm, l2_normalize

#: Numbers of a tile: 2 MB in float32, of which a loss holds about ten at a time.
TILE = 2**19
#: Scores up to which a matrix is held whole, which is faster.
WHOLE = 2**22


P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """The function, left out of what ``torch.compile`` traces.

    ``torch.compiler.disable`` loads the compiler, which takes a second, where it is applied: that
    is here in the first call that is compiled, and not in an import.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            found: T = torch.compiler.disable(function)(*args, **kwargs)
            return found
        return function(*args, **kwargs)

    return call


def tiles(rows: int, columns: int, multiple: int = 1) -> Iterator[slice]:
    """Slices of rows whose tiles have about :data:`TILE` numbers.

    Args:
        rows: of the whole matrix.
        columns: of the whole matrix.
        multiple: what the number of rows of a tile is a multiple of.

    Example:
        >>> list(tiles(3, 2**18))
        [slice(0, 2, None), slice(2, 3, None)]
    """
    step = max(TILE // max(columns, 1) // multiple, 1) * multiple
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


class Candidates:
    """Vectors that rows are compared with, from one tensor or more, one after the other.

    Args:
        *parts: ``(m, D)`` each, of any length; no copy of them is made.
    """

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts
        self.squares = torch.cat([torch.linalg.vector_norm(one, dim=1).square() for one in parts])
        self.scales = inverse_norm(self.squares)

    def __len__(self) -> int:
        return len(self.squares)

    def products(self, unit: Tensor) -> Tensor:
        """Products ``(b, m)`` of some unit vectors with the vectors as they are."""
        if len(self.parts) == 1:
            return unit @ self.parts[0].T
        return torch.cat([unit @ part.T for part in self.parts], dim=1)

    def cosines(self, vectors: Tensor) -> Tensor:
        """Cosines ``(b, m)`` with some vectors."""
        return self.products(l2_normalize(vectors)).mul_(self.scales)


def sums_of_costs(
    costs: Callable[[Tensor, slice], Costs],
    tensors: Sequence[Tensor],
    directions: Sequence[tuple[int, Sequence[int]]],
    parameters: Sequence[nn.Parameter] = (),
    *,
    multiple: int = 1,
) -> list[Costs]:
    """What cosines cost in each direction, with gradients, computed in tiles.

    Args:
        costs: of a tile ``(b, m)`` of cosines, and which rows it is of.
        tensors: vectors ``(…, D)`` of any length, in at least float32.
        directions: which of the tensors has the rows, and which have the candidates.
        parameters: what ``costs`` has a gradient for, beside the cosines.
        multiple: see :func:`tiles`.
    """
    totals, numbers = _SumsOfCosts.apply(
        costs, multiple, directions, len(tensors), *tensors, *parameters
    )
    return [Costs(totals[place], numbers[place]) for place in range(len(directions))]


class _SumsOfCosts(torch.autograd.Function):
    """All directions at once: they share the memory of the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        costs: Callable[[Tensor, slice], Costs],
        multiple: int,
        directions: Sequence[tuple[int, Sequence[int]]],
        vectors: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.costs, ctx.multiple, ctx.directions, ctx.vectors = costs, multiple, directions, vectors
        ctx.save_for_backward(*tensors)
        totals = tensors[0].new_zeros(len(directions))
        numbers = torch.zeros(len(directions), dtype=torch.long, device=totals.device)
        with autocast_off(totals):
            for place, (own, others) in enumerate(directions):
                candidates = Candidates(*(tensors[other] for other in others))
                for rows in tiles(len(tensors[own]), len(candidates), multiple):
                    total, number = costs(candidates.cosines(tensors[own][rows]), rows)
                    totals[place] += total
                    numbers[place] += number
        ctx.mark_non_differentiable(numbers)
        return totals, numbers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        gradients = [
            torch.zeros_like(one) if needed else None
            for one, needed in zip(tensors, ctx.needs_input_grad[4:], strict=True)
        ]
        with autocast_off(grads[0]):
            for (own, others), grad in zip(ctx.directions, grads[0], strict=True):
                _add_gradients(ctx, tensors, gradients, own, others, grad)
        return None, None, None, None, *gradients


def _add_gradients(
    ctx: Any,
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    own: int,
    others: Sequence[int],
    grad: Tensor,
) -> None:
    """Add the gradients of one direction, in place."""
    parts, parameters = [tensors[other] for other in others], tensors[ctx.vectors :]
    of_own, of_parts = gradients[own], [gradients[other] for other in others]
    candidates = Candidates(*parts)
    of_scales = torch.zeros_like(candidates.scales)
    for rows in tiles(len(tensors[own]), len(candidates), ctx.multiple):
        vectors = tensors[own][rows].detach().requires_grad_()
        with torch.enable_grad():
            unit = l2_normalize(vectors)
        products = candidates.products(unit.detach()).requires_grad_()
        scales = candidates.scales.detach().requires_grad_()
        with torch.enable_grad():
            total = ctx.costs(products * scales, rows).total
            inputs = [products, scales, *parameters]
            of_products, more, *of_others = torch.autograd.grad(
                total, inputs, grad, allow_unused=True
            )
        del total, products
        for sums, one in zip(gradients[ctx.vectors :], of_others, strict=True):
            if sums is not None and one is not None:
                sums += one
        if of_products is None or more is None:  # the loss does not look at the scores
            continue
        of_scales += more
        of_unit, first = torch.zeros_like(unit), 0
        for part, of_part in zip(parts, of_parts, strict=True):
            columns = of_products[:, first : first + len(part)]
            first += len(part)
            if of_own is not None:
                of_unit.addmm_(columns, part)
            if of_part is not None:
                of_part.addmm_(columns.T, unit.detach())
        if of_own is not None:
            of_own[rows] += torch.autograd.grad(unit, vectors, of_unit)[0]
    squares = candidates.squares.detach().requires_grad_()
    with torch.enable_grad():
        (of_squares,) = torch.autograd.grad(inverse_norm(squares), squares, of_scales)
    lengths = [len(part) for part in parts]
    for part, of_part, one in zip(parts, of_parts, of_squares.split(lengths), strict=True):
        if of_part is not None:
            of_part.addcmul_(part, one[:, None], value=2)


def pair_cosines(image: Tensor, text: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Cosines ``(p,)`` of p pairs of rows of ``[image; text]``, with gradients, computed in parts.

    Args:
        image: ``(n, D)``, of any length, in at least float32.
        text: ``(n, D)``, likewise.
        first: ``(p,)`` rows, from n on those of ``text``.
        second: ``(p,)`` rows to compare them with.
    """
    cosines: Tensor = _PairCosines.apply(image, text, first, second)
    return cosines


class _PairCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(image, text, first, second)
        with autocast_off(image):
            parts = [
                (l2_normalize(_rows(image, text, first[pairs])))
                .mul_(l2_normalize(_rows(image, text, second[pairs])))
                .sum(dim=1)
                for pairs in tiles(len(first), image.shape[1])
            ]
        return torch.cat(parts) if parts else image.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, *places = ctx.saved_tensors
        gradients = [torch.zeros_like(image), torch.zeros_like(text)]
        with autocast_off(image):
            for pairs in tiles(len(places[0]), image.shape[1]):
                sides = [_rows(image, text, rows[pairs]).requires_grad_() for rows in places]
                with torch.enable_grad():
                    cosines = (l2_normalize(sides[0]) * l2_normalize(sides[1])).sum(dim=1)
                    found = torch.autograd.grad(cosines, sides, grads[0][pairs])
                for rows, of_rows in zip(places, found, strict=True):
                    is_text = (rows[pairs] >= len(image))[:, None]
                    own = rows[pairs] % len(image)
                    gradients[0].index_add_(0, own, of_rows.masked_fill(is_text, 0))
                    gradients[1].index_add_(0, own, of_rows.masked_fill(~is_text, 0))
        return *gradients, None, None


def _rows(image: Tensor, text: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``[image; text]``."""
    own = rows % len(image)
    return torch.where((rows >= len(image))[:, None], text[own], image[own])
