"""One vector of an image and one of a caption, for systems that compare their tokens."""

from __future__ import annotations

from torch import Tensor, nn

from itmkit.nn.contract import Tokens, common_width
from itmkit.nn.pooling.external_attention import ExternalSpatialAttention
from itmkit.nn.pooling.mean_path import MeanPath
from itmkit.vectors import l2_normalize


class GlobalBranch(nn.Module):
    """Pool the tokens of either side by external spatial attention, with means beside them.

    A cheap first stage of a system that compares every word with every region: trained with it on
    the same tokens, its vectors find the candidates that the system then puts in order.

    Ours; it is the global branch of MATE (:class:`ExternalSpatialAttention`) with a
    :class:`MeanPath`, which starts as the mean of the tokens.

    Args:
        mean_path: vectors of mean features that are joined with those of the tokens; None: the
            tokens alone.

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

    def __init__(self, mean_path: MeanPath | None = None) -> None:
        super().__init__()
        self.mean_path = mean_path

    def complete(self, image_encoder: nn.Module, text_encoder: nn.Module) -> None:
        """Make the layers, for the tokens of these encoders; a system calls it.

        Raises:
            InputError: encoders whose widths differ.
        """
        dim = common_width(image_encoder=image_encoder, text_encoder=text_encoder)
        self.image_pool = ExternalSpatialAttention(dim, drop=0.0, start_at_mean=True)
        self.text_pool = ExternalSpatialAttention(dim, drop=0.0, start_at_mean=True)
        if self.mean_path is not None:
            self.mean_path.complete(image_encoder, text_encoder)

    def image(self, features: Tensor, mask: Tensor | None, tokens: Tokens) -> Tensor:
        """Unit vectors of images: what their encoder was given, and the tokens that it gave."""
        attended = l2_normalize(self.image_pool(*tokens))
        if self.mean_path is None:
            return attended
        mean = self.mean_path.image(features, mask, tokens)
        return self.mean_path.join(mean, attended)

    def text(self, inputs: Tensor, mask: Tensor | None, tokens: Tokens) -> Tensor:
        """Unit vectors of captions: what their encoder was given, and the tokens that it gave."""
        attended = l2_normalize(self.text_pool(*tokens))
        if self.mean_path is None:
            return attended
        mean = self.mean_path.text(inputs, mask, tokens)
        return self.mean_path.join(mean, attended)
