"""Token ids through any encoder of the transformers library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from itmkit.checks import check_dropout, check_optional_count
from itmkit.nn.contract import Tokens
from itmkit.nn.encoders.transformer_backbone import ModelConfig, TransformerBackbone
from itmkit.nn.functional import fill_padding
from itmkit.nn.layers.token_dropout import TokenDropout, kept_tokens


class TransformerText(TransformerBackbone):
    """A transformers text model, projected to the joint width.

    Args:
        name_or_path: a model name of the hub, or a local folder, to take pretrained weights from;
            or a module, such as a transformers model, which is trained where it has gradients.
        config: instead of it, a config with its ``model_type`` (a dict, a JSON file, or a config
            object of transformers), to start from random weights.
        dim: width D of the tokens, by a Linear; None for the width of the model, unprojected.
        layer: hidden state to read: 0 the embeddings, k the output of layer k, -1 the last, -2 the
            one before it.
        frozen: the model is never trained: no gradient, always in eval mode.
        dropout: dropout on the hidden state before the Linear, in [0, 1).
        shared_dropout: whether all tokens of a caption lose the same channels, which regularises
            more where they are pooled.
        token_drop: probability in [0, 1) that a token is left out in training, after the model has
            read it; one always stays.

    Shape:
        - ids: ``(B, L)`` int64
        - mask: ``(B, L)`` bool, True on real tokens
        - output: tokens ``(B, L, D)``, zero on padding, and ``mask``, less the tokens left out

    Attributes:
        dim: width D of the tokens.
        backbone: the transformers model.

    Raises:
        InputError: not exactly one of ``name_or_path`` and ``config``, a config without
            ``model_type``, a model that is not found or not one of text, a layer that does not
            exist, an id outside the vocabulary, more tokens
            than the model has positions.

    Example:
        >>> import torch
        >>> config = dict(model_type="bert", vocab_size=20, hidden_size=16, num_hidden_layers=2,
        ...               num_attention_heads=2, intermediate_size=32)
        >>> encoder = TransformerText(config=config, dim=8).eval()
        >>> ids = torch.tensor([[1, 2, 3, 0]])
        >>> encoder(ids, ids > 0)[0].shape
        torch.Size([1, 4, 8])
    """

    def __init__(
        self,
        name_or_path: str | Path | nn.Module | None = None,
        *,
        config: dict[str, Any] | str | Path | ModelConfig | None = None,
        dim: int | None = None,
        layer: int = -1,
        frozen: bool = False,
        dropout: float = 0.0,
        shared_dropout: bool = False,
        token_drop: float = 0.0,
    ) -> None:
        check_optional_count(dim=dim)
        check_dropout(dropout=dropout, token_drop=token_drop)
        super().__init__(name_or_path, config, layers=[layer], layers_name="layer", frozen=frozen)
        self.dropout = TokenDropout(dropout, shared=shared_dropout)
        self.token_drop = token_drop
        self.projection = nn.Identity() if dim is None else nn.Linear(self.width, dim)
        self.dim: int = self.width if dim is None else dim

    def forward(self, ids: Tensor, mask: Tensor) -> Tokens:
        (hidden,) = self.hidden_states(ids, mask)
        if self.training and self.token_drop:
            mask = kept_tokens(hidden, mask, self.token_drop)
        tokens = self.projection(self.dropout(hidden))
        return Tokens(fill_padding(tokens, mask), mask)
