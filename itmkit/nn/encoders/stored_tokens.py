"""Token features that a frozen text model gave once, to tokens of the joint width."""

from __future__ import annotations

from torch import Tensor, nn

from itmkit.checks import InputError, check_count, check_dropout, type_of
from itmkit.nn.contract import Tokens
from itmkit.nn.functional import check_tokens, fill_padding
from itmkit.nn.layers.linear import Linear
from itmkit.nn.layers.token_dropout import TokenDropout, kept_tokens


class StoredTokens(nn.Module):
    """Project stored token features of captions: a Linear, or one a level.

    What :class:`TransformerText` (or with ``levels`` :class:`TransformerLevels`) does behind a
    frozen text model, whose hidden states ``itmkit extract --text_model`` wrote to disk and
    ``text_features`` of the data reads: the same function, without the model in every step.

    Args:
        in_dim: width of a hidden state, such as 384 of MiniLM and 768 of BERT-base.
        dim: width D of the tokens; None for ``in_dim``, unprojected.
        levels: number of hidden states that were stored side by side; gives tokens on as many
            levels. None for one, and its tokens as they are.
        dropout: probability in [0, 1) that a channel of a token is zeroed in training.
        shared_dropout: whether all tokens of a caption lose the same channels, which regularises
            more where they are pooled.
        token_drop: probability in [0, 1) that a token is left out in training; one always stays.

    Shape:
        - features: ``(B, L, in_dim)``, or ``(B, L, levels * in_dim)``
        - mask: ``(B, L)`` bool, True on real tokens, or None
        - output: tokens ``(B, L, D)``, zero on padding, and the mask, less the tokens left out;
          with ``levels`` a list of such

    Attributes:
        dim: width D of the tokens.
        levels: number of levels, where it is given.

    Raises:
        InputError: a number out of its range, or a wrong shape or dtype of ``features`` or
            ``mask``.

    Example:
        >>> import torch
        >>> tokens, mask = StoredTokens(16, 8)(torch.randn(2, 5, 16))
        >>> tokens.shape, mask is None
        (torch.Size([2, 5, 8]), True)
        >>> [level.tokens.shape for level in StoredTokens(16, 8, levels=2)(torch.randn(2, 5, 32))]
        [torch.Size([2, 5, 8]), torch.Size([2, 5, 8])]
    """

    def __init__(
        self,
        in_dim: int = 384,
        dim: int | None = None,
        *,
        levels: int | None = None,
        dropout: float = 0.0,
        shared_dropout: bool = False,
        token_drop: float = 0.0,
    ) -> None:
        super().__init__()
        count = 1 if levels is None else levels
        check_count(in_dim=in_dim, dim=in_dim if dim is None else dim, levels=count)
        check_dropout(token_drop=token_drop)
        self.in_dim = in_dim
        self.dim: int = in_dim if dim is None else dim
        if levels is not None:
            self.levels = levels
        self.token_drop = token_drop
        self.dropout = TokenDropout(dropout, shared=shared_dropout)
        self.projections = nn.ModuleList(
            nn.Identity() if dim is None else Linear(in_dim, dim) for _ in range(count)
        )

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tokens | list[Tokens]:
        if not features.is_floating_point():
            raise InputError(
                f"features is {type_of(features)}; expected floats (batch, tokens, channels): "
                "text_features of the data gives them"
            )
        check_tokens("features", features, self.in_dim * len(self.projections), mask, "mask")
        if self.training and self.token_drop:
            mask = kept_tokens(features, mask, self.token_drop)
        features = fill_padding(features, mask)
        out = [
            Tokens(fill_padding(projection(self.dropout(level)), mask), mask)
            for level, projection in zip(
                features.chunk(len(self.projections), dim=-1), self.projections, strict=True
            )
        ]
        return out if hasattr(self, "levels") else out[0]
