"""Token ids through any encoder of the transformers library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.nn.functional import check_ids
from itmkit.nn.weights import freeze_unused


class TransformerText(nn.Module):
    """A transformers text model, projected to the joint width.

    Args:
        name_or_path: a model name of the hub, or a local folder, to take pretrained weights from.
        config: instead of it, a config (a dict, or a JSON file) with its ``model_type``, to start
            from random weights.
        dim: width D of the tokens, by a Linear; None for the width of the model, unprojected.
        layer: hidden state to read: 0 the embeddings, k the output of layer k, -1 the last, -2 the
            one before it.
        frozen: the model is never trained: no gradient, always in eval mode.
        dropout: dropout on the hidden state before the Linear, in [0, 1).

    Shape:
        - ids: ``(B, L)`` int64
        - mask: ``(B, L)`` bool, True on real tokens
        - output: tokens ``(B, L, D)``, zero on padding, and ``mask``

    Attributes:
        dim: width D of the tokens.
        backbone: the transformers model.

    Raises:
        ValueError: not exactly one of ``name_or_path`` and ``config``, a config without
            ``model_type``, a layer that does not exist, an id outside the vocabulary, more tokens
            than the model has positions.

    Example:
        >>> config = dict(model_type="bert", vocab_size=20, hidden_size=16, num_hidden_layers=2,
        ...               num_attention_heads=2, intermediate_size=32)
        >>> encoder = TransformerText(config=config, dim=8).eval()
        >>> ids = torch.tensor([[1, 2, 3, 0]])
        >>> encoder(ids, ids > 0)[0].shape
        torch.Size([1, 4, 8])
    """

    def __init__(
        self,
        name_or_path: str | Path | None = None,
        *,
        config: dict[str, Any] | str | Path | None = None,
        dim: int | None = None,
        layer: int = -1,
        frozen: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if (name_or_path is None) == (config is None):
            raise ValueError(
                "exactly one of name_or_path and config must be given, got "
                f"name_or_path={name_or_path!r} and config={config!r}"
            )
        if dim is not None and dim < 1:
            raise ValueError(f"dim must be at least 1 or None, got {dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.frozen = frozen
        self.layer = layer
        self.backbone: Any = _build(name_or_path, config)
        self.vocab_size: int = self.backbone.config.vocab_size
        self.max_length: int | None = getattr(self.backbone.config, "max_position_embeddings", None)
        self.backbone.requires_grad_(not frozen).eval()
        width = self._probe()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Identity() if dim is None else nn.Linear(width, dim)
        self.dim: int = width if dim is None else dim
        self.train()

    def train(self, mode: bool = True) -> TransformerText:
        """Set the mode; a frozen model stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        check_ids(ids, mask, self.vocab_size)
        if self.max_length is not None and ids.shape[1] > self.max_length:
            raise ValueError(
                f"ids must have at most {self.max_length} tokens a row, the positions of the "
                f"model, got {ids.shape[1]}"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden = self._hidden(ids, mask)
        tokens = self.projection(self.dropout(hidden))
        return tokens.masked_fill(~mask.unsqueeze(-1), 0), mask

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        first = torch.arange(ids.shape[1], device=ids.device) == 0
        mask = mask | (first & ~mask.any(1, keepdim=True))  # a row without a token attends its pad
        last = self.layer == -1
        out = self.backbone(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=not last
        )
        if last:
            hidden: Tensor = out.last_hidden_state
            return hidden
        states: tuple[Tensor, ...] = out.hidden_states
        if not -len(states) <= self.layer < len(states):
            raise ValueError(
                f"layer must lie in [{-len(states)}, {len(states)}) for this model, "
                f"got {self.layer}"
            )
        return states[self.layer]

    def _probe(self) -> int:
        """Find the width on a short text; stop training what the chosen layer does not use."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=next(self.backbone.parameters()).device)
        with torch.set_grad_enabled(not self.frozen):
            hidden = self._hidden(ids, torch.ones_like(ids, dtype=torch.bool))
            if not self.frozen:
                freeze_unused(self.backbone, hidden)
        return hidden.shape[-1]


def _build(name_or_path: str | Path | None, config: dict[str, Any] | str | Path | None) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    if name_or_path is not None:
        model = AutoModel.from_pretrained(str(name_or_path), dtype=torch.float32)
    else:
        if isinstance(config, (str, Path)):
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "model_type" not in config:
            raise ValueError(f"config must be a mapping with a model_type, got {config!r}")
        if config["model_type"] not in CONFIG_MAPPING:
            raise ValueError(
                f"model_type of config must be one that transformers knows, "
                f"got {config['model_type']!r}"
            )
        model = AutoModel.from_config(AutoConfig.for_model(**config))
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return model
