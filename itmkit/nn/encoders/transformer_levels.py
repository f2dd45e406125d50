"""Token ids to several hidden states of a transformers text model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from itmkit.checks import InputError, check_count, check_dropout
from itmkit.nn.contract import Tokens
from itmkit.nn.encoders.transformer_backbone import ModelConfig, TransformerBackbone
from itmkit.nn.functional import fill_padding
from itmkit.nn.layers.linear import Linear
from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability


class TransformerLevels(TransformerBackbone):
    """Several hidden states of a transformers text model, each by a Linear to the joint width.

    The text side of DAIM: hidden states 4, 10 and 12 of BERT-base.

    Args:
        name_or_path: a model name of the hub, or a local folder, to take pretrained weights from;
            or a module, such as a transformers model, which is trained where it has gradients.
        config: instead of it, a config with its ``model_type`` (a dict, a JSON file, or a config
            object of transformers), to start from random weights.
        layers: hidden states to read: 0 the embeddings, k the output of layer k, -1 the last, -2
            the one before it.
        dim: width D of the tokens.
        frozen: the model is never trained: no gradient, always in eval mode.
        dropout: dropout on the hidden states before the Linear, in [0, 1).
        block_discriminability: applied to the output of every layer of the model; None for none.
        level_discriminability: applied to each hidden state that is read; None for none.

    Shape:
        - ids: ``(B, L)`` int64
        - mask: ``(B, L)`` bool, True on real tokens
        - output: for each level tokens ``(B, L, D)``, zero on padding, and ``mask``

    Attributes:
        dim: width D of the tokens.
        levels: number of levels.
        vocab_size: number of token ids.
        backbone: the transformers model.

    Raises:
        InputError: not exactly one of ``name_or_path`` and ``config``, a config without
            ``model_type``, a model that is not found or not one of text, a layer that does not
            exist, an id outside the vocabulary, more tokens
            than the model has positions, block_discriminability for a model without a list of its
            layers.

    Example:
        >>> import torch
        >>> config = dict(model_type="bert", vocab_size=20, hidden_size=16, num_hidden_layers=2,
        ...               num_attention_heads=2, intermediate_size=32)
        >>> encoder = TransformerLevels(config=config, layers=(1, 2), dim=8).eval()
        >>> ids = torch.tensor([[1, 2, 3, 0]])
        >>> [tokens.shape for tokens, mask in encoder(ids, ids > 0)]
        [torch.Size([1, 4, 8]), torch.Size([1, 4, 8])]
    """

    def __init__(
        self,
        name_or_path: str | Path | nn.Module | None = None,
        *,
        config: dict[str, Any] | str | Path | ModelConfig | None = None,
        layers: Sequence[int] = (4, 10, 12),
        dim: int = 768,
        frozen: bool = False,
        dropout: float = 0.0,
        block_discriminability: FeatureDiscriminability | None = None,
        level_discriminability: FeatureDiscriminability | None = None,
    ) -> None:
        if not layers:
            raise InputError(f"layers is {layers}; expected at least one hidden state")
        check_count(dim=dim)
        check_dropout(dropout=dropout)
        super().__init__(
            name_or_path,
            config,
            layers=layers,
            layers_name="layers",
            frozen=frozen,
            block_discriminability=block_discriminability,
        )
        self.dim = dim
        self.levels = len(layers)
        self.level_discriminability = level_discriminability
        self.dropout = nn.Dropout(dropout)
        self.projections = nn.ModuleList(Linear(self.width, dim) for _ in layers)

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tokens]:
        out = []
        for hidden, projection in zip(self.hidden_states(ids, mask), self.projections, strict=True):
            if self.level_discriminability is not None:
                hidden = self.level_discriminability(hidden, mask)
            tokens = projection(self.dropout(hidden))
            out.append(Tokens(fill_padding(tokens, mask), mask))
        return out
