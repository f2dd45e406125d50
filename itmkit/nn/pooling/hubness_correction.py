"""Vectors whose products are corrected for hubs: items that are close to too much."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import InputError, check_count, check_shape
from itmkit.precision import at_least_float32, autocast_off
from itmkit.vectors import l2_normalize

_MOST = 0.25  # largest correction of an item, of either sign
_SCALE = (1 + 2 * _MOST) ** 0.5  # norm of the vectors before it is divided out
_CHUNK = 1024  # rows of a bank that are compared with the other one at a time
_ROUNDING = 1e-3  # by which centres may differ, as those of a bank that was cast


class HubnessCorrection(nn.Module):
    r"""Take from a cosine how close its image and its caption are to others of the training split.

    .. math::
        s_{ij} = \cos(v_i, t_j) - \tfrac12 r_i - \tfrac12 r_j, \qquad
        r_i = \text{mean of the } k \text{ largest } \cos(v_i, t_b), \quad
        r_j = \text{mean of the } k \text{ largest } \cos(v_b, t_j)

    with the images and captions *b* of a bank, drawn from the training split. In spaces of many
    dimensions some images ("hubs") are among the nearest of far too many captions, and some
    captions of images; what an item's neighbourhood has in general says nothing of one pair.

    The corrected score is again the cosine of two vectors, which have four more numbers: *r* of
    their own side, a constant for that of the other, and what makes them unit vectors. So an index,
    an export or a database of vectors needs no change. Corrected cosines are 1.5 times smaller, and
    less by a constant; *r* is taken up to 0.5 from its mean over the bank.

    A system fills the bank, :meth:`fill`, before every validation of a fit, and at the end of an
    epoch without one, from images and captions that are trained on; checkpoints hold it, and serve
    any number of neighbours. Until then nothing is corrected, and missing rows of a bank are at a
    cosine of 0.

    The score is that of CSLS (Conneau et al., Word Translation Without Parallel Data, ICLR 2018),
    halved. There the neighbours are those in the searched gallery; here they are in the training
    split, as in Bogolin et al., Cross Modal Retrieval with Querybank Normalisation, CVPR 2022: a
    score depends on its own pair alone. MATE, DAIM and TVRN as published have no correction.

    Args:
        size: images of the bank, and captions, each at least 1.
        neighbours: k, at least 1 and at most ``size``.

    Shape:
        image ``(n, D)``, text ``(m, D)``: unit vectors → ``(n, D + 4)``, ``(m, D + 4)``

    Raises:
        InputError: a number out of its range, or vectors of another width.

    Example:
        >>> correction = HubnessCorrection(size=3, neighbours=1)
        >>> correction.complete(2)
        >>> image, text = torch.eye(2), l2_normalize(torch.tensor([[1.0, 0.2], [1.0, 0.9]]))
        >>> correction.fill(image, text)
        >>> scores = correction.image(image) @ correction.text(text).T
        >>> scores.shape
        torch.Size([2, 2])
    """

    image_bank: Tensor
    text_bank: Tensor
    centres: Tensor
    refilled_state = ("image_bank", "text_bank", "centres")

    def __init__(self, size: int = 2000, *, neighbours: int = 10) -> None:
        super().__init__()
        check_count(size=size, neighbours=neighbours)
        if neighbours > size:
            raise InputError(f"neighbours is {neighbours}; expected at most {size}, as size")
        self.size, self.neighbours = size, neighbours
        # what is loaded may be of another number of neighbours
        self.register_load_state_dict_post_hook(_check_centres)  # type: ignore[no-untyped-call]

    def complete(self, dim: int) -> None:
        """Make an empty bank for vectors of a width; a system calls it."""
        self.register_buffer("image_bank", torch.zeros(self.size, dim))
        self.register_buffer("text_bank", torch.zeros(self.size, dim))
        self.register_buffer("centres", torch.zeros(2))  # mean r of images and of captions

    @torch.no_grad()
    def fill(self, image: Tensor, text: Tensor) -> None:
        """Replace the bank by at most ``size`` images and captions, of which some may be pairs.

        Args:
            image: ``(n, D)`` unit vectors, not corrected.
            text: ``(m, D)`` unit vectors, not corrected.
        """
        for bank, vectors in ((self.image_bank, image), (self.text_bank, text)):
            vectors = vectors[: self.size]
            check_shape((len(vectors), bank.shape[1]), vectors=vectors)
            bank.zero_()
            bank[: len(vectors)] = vectors
        self.centres.copy_(self._mean_closeness())

    def image(self, vectors: Tensor) -> Tensor:
        """Unit vectors ``(n, D + 4)`` of images, from those without correction ``(n, D)``."""
        own, pad, other = self._parts(vectors, self.text_bank, self.centres[0])
        return torch.cat([vectors / _SCALE, -own, other, pad, torch.zeros_like(pad)], dim=1)

    def text(self, vectors: Tensor) -> Tensor:
        """Unit vectors ``(m, D + 4)`` of captions, from those without correction ``(m, D)``."""
        own, pad, other = self._parts(vectors, self.image_bank, self.centres[1])
        return torch.cat([vectors / _SCALE, other, -own, torch.zeros_like(pad), pad], dim=1)

    def without(self, corrected: Tensor) -> Tensor:
        """The unit vectors ``(n, D)`` in corrected ones ``(n, D + 4)``."""
        return l2_normalize(corrected[..., :-4])

    def extra_repr(self) -> str:
        return f"size={self.size}, neighbours={self.neighbours}"

    def _parts(self, vectors: Tensor, bank: Tensor, centre: Tensor) -> tuple[Tensor, ...]:
        """Correction, padding and constant, ``(n, 1)`` each."""
        check_shape((vectors.shape[0], bank.shape[1]), vectors=vectors)
        with torch.no_grad():
            half = (self._closeness(vectors, bank) - centre) / 2
            half = half.clamp(-_MOST, _MOST).to(vectors.dtype).unsqueeze(1)
            pad = (_MOST - half.square() / _MOST).clamp_min(0).sqrt()
            other = torch.full_like(half, _MOST**0.5)
        return half / _MOST**0.5 / _SCALE, pad / _SCALE, other / _SCALE

    def _mean_closeness(self) -> Tensor:
        """Means of r ``(2,)`` over the images and over the captions that are in the bank."""
        banks, means = (self.image_bank, self.text_bank), []
        for own, other in (banks, banks[::-1]):
            filled = own.any(dim=1)
            parts = [self._closeness(part, other) for part in own.split(_CHUNK)]
            means.append(torch.cat(parts).where(filled, 0).sum() / filled.sum().clamp(min=1))
        return torch.stack(means)

    def _closeness(self, vectors: Tensor, bank: Tensor) -> Tensor:
        """R ``(n,)``: the mean of the largest cosines with a bank."""
        with autocast_off(vectors):
            cosines = F.linear(at_least_float32(vectors), at_least_float32(bank))
            return cosines.topk(self.neighbours, dim=1).values.mean(1)


@torch.no_grad()
def _check_centres(correction: HubnessCorrection, _: Any) -> None:
    """Replace centres that were loaded with a bank and are of another number of neighbours."""
    if not hasattr(correction, "centres") or correction.centres.is_meta:
        return
    own = correction._mean_closeness().to(correction.centres)
    if not own.allclose(correction.centres, atol=_ROUNDING):
        correction.centres.copy_(own)
