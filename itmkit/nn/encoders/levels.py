"""Several levels out of an encoder that has one."""

from __future__ import annotations

from torch import Tensor, nn

from itmkit.checks import check_count, check_optional_count
from itmkit.nn.contract import Tokens, encoder_width
from itmkit.nn.functional import fill_padding
from itmkit.nn.layers.linear import Linear


class SharedLevels(nn.Module):
    """The tokens of one encoder as several levels, by a Linear each.

    Args:
        encoder: gives tokens and their mask, such as :class:`BiGRU` or :class:`RegionProjection`,
            with its width of output as attribute ``dim``.
        levels: number of levels.
        dim: width D of the tokens; None for that of ``encoder``.

    Shape:
        - input: that of ``encoder``
        - output: for each level tokens ``(B, N, D)``, zero on padding, and the mask of ``encoder``

    Attributes:
        dim: width D of the tokens.
        levels: number of levels.

    Raises:
        InputError: levels or dim below 1, an encoder without ``dim``.

    Example:
        >>> import torch
        >>> from itmkit.nn import BiGRU
        >>> encoder = SharedLevels(BiGRU(10, embed_dim=4, dim=8), levels=2)
        >>> ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
        >>> [tokens.shape for tokens, mask in encoder(ids, ids > 0)]
        [torch.Size([2, 3, 8]), torch.Size([2, 3, 8])]
    """

    def __init__(self, encoder: nn.Module, levels: int = 3, dim: int | None = None) -> None:
        super().__init__()
        check_count(levels=levels)
        check_optional_count(dim=dim)
        width = encoder_width("encoder", encoder)
        self.encoder = encoder
        self.levels = levels
        self.dim = width if dim is None else dim
        self.projections = nn.ModuleList(Linear(width, self.dim) for _ in range(levels))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tokens]:
        tokens, mask = self.encoder(x, mask)
        return [
            Tokens(fill_padding(projection(tokens), mask), mask) for projection in self.projections
        ]
