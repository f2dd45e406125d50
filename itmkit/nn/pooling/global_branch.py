"""One vector of an image and one of a caption, from their tokens."""

from __future__ import annotations

from torch import Tensor, nn

from itmkit.checks import check_count, check_dropout
from itmkit.nn.contract import Tokens, common_width
from itmkit.nn.pooling.external_attention import ExternalSpatialAttention, pooled_shares
from itmkit.nn.pooling.mean_path import MeanPath
from itmkit.vectors import l2_normalize


class GlobalBranch(nn.Module):
    """Pool the tokens of either side by external spatial attention, with means beside them.

    The global branch of MATE, and a cheap first stage of a system that compares every word with
    every region: trained with it on the same tokens, its vectors find the candidates that the
    system then puts in order.

    The published pooling is ``GlobalBranch(start_at_mean=False)`` with views and dropped tokens;
    the rest is ours.

    Args:
        mean_path: vectors of mean features that are joined with those of the tokens; None: the
            tokens alone.
        views: vectors of an image in training.
        token_drop: probability in [0, 1) that a vector of an image leaves out a token in training.
        start_at_mean: whether the pooling starts as the mean of the tokens.

    Example:
        >>> import torch
        >>> from itmkit.nn import BiGRU, RegionProjection
        >>> encoders = RegionProjection(16, 8, hidden_dim=4), BiGRU(20, 6, 8)
        >>> branch = GlobalBranch(MeanPath(4, hidden_dim=4))
        >>> branch.complete(*encoders)
        >>> features = torch.randn(2, 5, 16)
        >>> branch.image(features, None, encoders[0](features)).shape
        torch.Size([2, 12])
    """

    def __init__(
        self,
        mean_path: MeanPath | None = None,
        *,
        views: int = 1,
        token_drop: float = 0.0,
        start_at_mean: bool = True,
    ) -> None:
        super().__init__()
        check_count(views=views)
        check_dropout(token_drop=token_drop)
        self.mean_path = mean_path
        self.views = views
        self.token_drop = token_drop
        self.start_at_mean = start_at_mean

    def complete(self, image_encoder: nn.Module, text_encoder: nn.Module) -> None:
        """Make the layers, for the tokens of these encoders; a system calls it.

        Raises:
            InputError: encoders whose widths differ.
        """
        self.token_dim = common_width(image_encoder=image_encoder, text_encoder=text_encoder)
        start = self.start_at_mean
        self.image_pool = ExternalSpatialAttention(
            self.token_dim, self.views, self.token_drop, start_at_mean=start
        )
        self.text_pool = ExternalSpatialAttention(self.token_dim, drop=0.0, start_at_mean=start)
        if self.mean_path is not None:
            self.mean_path.complete(image_encoder, text_encoder)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.token_dim + (0 if self.mean_path is None else self.mean_path.dim)

    def image(self, features: Tensor, mask: Tensor | None, tokens: Tokens) -> Tensor:
        """Unit vectors of images: what their encoder was given, and the tokens that it gave.

        Returns:
            ``(n, dim)``; in training ``(n * views, dim)``, the views of an image adjacent.
        """
        attended = l2_normalize(self.image_pool(*tokens))
        if self.mean_path is None:
            return attended
        mean = self.mean_path.image(features, mask, tokens)
        if self.image_pool.training and self.views > 1:
            mean = mean.repeat_interleave(self.views, dim=0)
        return self.mean_path.join(mean, attended)

    def text(self, inputs: Tensor, mask: Tensor | None, tokens: Tokens) -> Tensor:
        """Unit vectors ``(m, dim)`` of captions, from the same as those of images."""
        attended = l2_normalize(self.text_pool(*tokens))
        if self.mean_path is None:
            return attended
        return self.mean_path.join(self.mean_path.text(inputs, mask, tokens), attended)

    def attended(self, vectors: Tensor) -> Tensor:
        """The part of the tokens in vectors, as unit vectors."""
        return vectors if self.mean_path is None else self.mean_path.attended(vectors)

    def shares(self, image: Tokens, text: Tokens) -> Tensor:
        """Split the cosines of pairs into a share for every word and region.

        Returns:
            ``(n, L, N)``: a cosine, or of it the part that is not of the ``mean_path``.
        """
        shares = pooled_shares(self.image_pool, *image, self.text_pool, *text)
        return shares if self.mean_path is None else shares * (1 - self.mean_path.share.detach())
