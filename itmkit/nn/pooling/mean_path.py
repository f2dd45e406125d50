"""A path of its own for the mean features of an image and of a caption, beside their tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, check_count, check_dropout
from itmkit.nn.contract import Tokens, encoder_width
from itmkit.nn.encoders.region_projection import RegionProjection
from itmkit.nn.encoders.stored_tokens import StoredTokens
from itmkit.nn.functional import fill_padding
from itmkit.vectors import l2_normalize


class MeanPath(nn.Module):
    r"""Vectors of mean features, joined with vectors that attend to tokens.

    .. math::
        g = \mathrm{l2}\Big(h\big(\tfrac{1}{N} \textstyle\sum_n x_n\big)\Big), \qquad
        v = \big[\sqrt{w}\, g, \; \sqrt{1 - w}\, e\big]

    with a head *h* for either side, the vector *e* of the tokens and a learnt share *w*. The cosine
    of two joined vectors is *w* times that of the means and *1 - w* times that of the tokens.
    Heads on means are the plainest matcher, and on a few thousand photos hard to beat: what is
    pooled regularises. Heads of their own leave the tokens free to tell what the mean cannot.

    The image head is a :class:`RegionProjection`, the text head a Linear. They read the stored
    features that an encoder reads, where it says their width as ``in_dim``, else its tokens. They
    are made when the encoders are known, by :meth:`complete`, which a system calls.

    Ours; the published systems have none.

    Args:
        dim: width of the vectors of means.
        hidden_dim: width of the MLP of the image head.
        image_dropout: probability in [0, 1) that a channel of the mean of an image is zeroed in
            training.
        text_dropout: the same of the mean of a caption.
        share: w at the start, in (0, 1).

    Raises:
        InputError: a number out of its range.

    Example:
        >>> path = MeanPath(8, hidden_dim=4)
        >>> path.complete(RegionProjection(16, 4, hidden_dim=4), StoredTokens(12, 4))
        >>> regions, words = (torch.randn(2, 5, 16), None), (torch.randn(3, 6, 12), None)
        >>> attended = Tokens(torch.randn(2, 5, 4)), Tokens(torch.randn(3, 6, 4))
        >>> path.image(*regions, attended[0]).shape, path.text(*words, attended[1]).shape
        (torch.Size([2, 8]), torch.Size([3, 8]))
    """

    def __init__(
        self,
        dim: int = 512,
        *,
        hidden_dim: int = 512,
        image_dropout: float = 0.5,
        text_dropout: float = 0.1,
        share: float = 0.5,
    ) -> None:
        super().__init__()
        check_count(dim=dim, hidden_dim=hidden_dim)
        check_dropout(image_dropout=image_dropout, text_dropout=text_dropout)
        if not 0 < share < 1:
            raise InputError(f"share is {share}; expected a number between 0 and 1")
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.image_dropout, self.text_dropout = image_dropout, text_dropout
        self.share_logit = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def complete(self, image_encoder: nn.Module, text_encoder: nn.Module) -> None:
        """Make the heads, for the features or the tokens of these encoders.

        Raises:
            InputError: an encoder that does not say its width.
        """
        encoders = {"image_encoder": image_encoder, "text_encoder": text_encoder}
        self._reads_features = [
            hasattr(encoder, "in_dim") and not hasattr(encoder, "levels")
            for encoder in encoders.values()
        ]
        widths: list[Any] = [
            encoder.in_dim if reads else encoder_width(name, encoder)
            for (name, encoder), reads in zip(encoders.items(), self._reads_features, strict=True)
        ]
        image, text = widths
        self.image_head = RegionProjection(
            image, self.dim, hidden_dim=self.hidden_dim, dropout=self.image_dropout
        )
        self.text_head = StoredTokens(text, self.dim, dropout=self.text_dropout)

    @property
    def share(self) -> Tensor:
        """The share w of the means in a score."""
        return self.share_logit.sigmoid()

    def image(self, features: Tensor, mask: Tensor | None, tokens: Tokens) -> Tensor:
        """Unit vectors ``(n, dim)`` of images.

        Args:
            features: what the image encoder was given, with its ``mask``.
            mask: ``(n, N)`` bool, True on real regions, or None.
            tokens: what the image encoder gave.
        """
        return _of_mean(self.image_head, *((features, mask) if self._reads_features[0] else tokens))

    def text(self, inputs: Tensor, mask: Tensor | None, tokens: Tokens) -> Tensor:
        """Unit vectors ``(m, dim)`` of captions; arguments as those of :meth:`image`."""
        return _of_mean(self.text_head, *((inputs, mask) if self._reads_features[1] else tokens))

    def join(self, mean: Tensor, attended: Tensor) -> Tensor:
        """Unit vectors ``(n, dim + D)`` of those of means and those of tokens ``(n, D)``."""
        share = self.share
        return torch.cat([share.sqrt() * mean, (1 - share).sqrt() * attended], dim=-1)

    def attended(self, joined: Tensor) -> Tensor:
        """The unit vectors of tokens ``(n, D)`` in joined ones ``(n, dim + D)``."""
        return l2_normalize(joined[..., self.dim :])


def _of_mean(head: nn.Module, features: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        mean = features.mean(1)
    else:
        mean = fill_padding(features, mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    tokens: Tensor = head(mean.unsqueeze(1))[0]
    return l2_normalize(tokens.squeeze(1))
