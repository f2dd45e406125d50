"""A transformers text model as hidden states: what the encoders of its tokens have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, did_you_mean
from itmkit.files import read_json, user_path
from itmkit.modes import evaluation_mode
from itmkit.nn.encoders.frozen import FreezableBackbone
from itmkit.nn.functional import check_ids
from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability
from itmkit.nn.weights import freeze_unused
from itmkit.pretrained import Source, fetching, following_weights, hub_token, stored_content


@runtime_checkable
class ModelConfig(Protocol):
    """A config object of transformers, such as ``BertConfig``."""

    model_type: str

    def to_dict(self) -> dict[str, Any]:
        """All settings, as plain values."""
        ...


class TransformerBackbone(FreezableBackbone):
    """Base of the encoders of tokens: a transformers text model, read after some of its layers.

    Takes what :class:`TransformerText` takes. Of a model of several parts it is the text encoder:
    the encoder of a T5, the text model of a CLIP, the body of a model with a head.

    Args:
        name_or_path: a model name of the hub, or a local folder, to take pretrained weights from;
            or a module, whose parameters are trained where they have a gradient.
        config: instead of it, a config with its ``model_type`` (a dict, a JSON file, or a config
            object of transformers), to start from random weights.
        layers: hidden states to read: 0 the embeddings, k the output of layer k, -1 the last.
        layers_name: the argument that an error about ``layers`` names.
        frozen: the model is never trained: no gradient, always in eval mode.
        block_discriminability: applied to the output of every layer; None for none.

    Attributes:
        backbone: the transformers model; parameters no hidden state depends on are not trained.
        name_or_path: as given, or None for a config or a module.
        pretrained_source: config of the model, for checkpoints; None for a module.
        vocab_size: number of token ids.
        max_length: most tokens of a caption, or None.
        width: width of a hidden state.
        layers: hidden states that are read.

    Raises:
        InputError: not exactly one of ``name_or_path`` and ``config``, a config without
            ``model_type``, a model that is not found or not one of text, a layer that does not
            exist, block_discriminability for a model without a list of its layers.
    """

    def __init__(
        self,
        name_or_path: str | Path | nn.Module | None,
        config: dict[str, Any] | str | Path | ModelConfig | None = None,
        *,
        layers: Sequence[int],
        layers_name: str,
        frozen: bool,
        block_discriminability: FeatureDiscriminability | None = None,
    ) -> None:
        super().__init__(frozen=frozen)
        self.name_or_path: str | None
        self.pretrained_source: Source | None
        model, self.name_or_path, self.pretrained_source = build_transformer(name_or_path, config)
        self._kind = type(model).__name__
        self.backbone = text_part(model)
        if hasattr(getattr(self.backbone, "config", None), "use_cache"):
            self.backbone.config.use_cache = False  # of a decoder, for texts that go on
        self.vocab_size, self.max_length = text_sizes(self.backbone, self._kind)
        self._set_gradients(given=isinstance(name_or_path, nn.Module))
        self.layers = list(layers)
        self._after_layers: _AfterLayers | None = None
        if block_discriminability is not None:
            self._after_layers = _AfterLayers(block_discriminability)
            for layer in _layer_list(self.backbone):
                layer.register_forward_hook(self._after_layers, prepend=True)
        with evaluation_mode(self.backbone):
            self.width = self._probe(layers_name)
        self.backbone.train(not frozen)  # transformers loads it in eval mode

    def hidden_states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """The hidden states ``(B, L, width)`` of the layers, after a check of the input."""
        check_ids(ids, mask, self.vocab_size)
        check_length(ids.shape[1], self.max_length)
        with self._grad():
            last, states = self._run(ids, mask)
        return [last if layer == -1 else states[layer] for layer in self.layers]

    def _run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The last hidden state, and all of them if one before it is read."""
        mask = attend_empty(mask)
        every = self.layers != [-1]
        if self._after_layers is not None:
            self._after_layers.mask = mask
        try:
            out = self.backbone(
                input_ids=ids, attention_mask=mask.long(), output_hidden_states=every
            )
        finally:
            if self._after_layers is not None:
                self._after_layers.mask = None
        return out.last_hidden_state, out.hidden_states if every else ()

    def _probe(self, layers_name: str) -> int:
        """Check the layers on a short text; stop training what none of them uses."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=next(self.backbone.parameters()).device)
        with torch.set_grad_enabled(not self.frozen):
            try:
                last, states = self._run(ids, torch.ones_like(ids, dtype=torch.bool))
            except (TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise InputError(f"{self._kind} is no model of text: {error}") from error
            count = len(states)
            for layer in self.layers:
                if layer != -1 and not -count <= layer < count:
                    raise InputError(
                        f"{layers_name} is {layer}; expected [{-count}, {count}) for this model"
                    )
            if not self.frozen:
                read = [last if layer == -1 else states[layer] for layer in self.layers]
                freeze_unused(self.backbone, torch.stack([hidden.sum() for hidden in read]))
        return last.shape[-1]


class _AfterLayers:
    """A hook on every layer: feature discriminability of its output, without the padding.

    The mask is there only while the model runs; a layer that activation checkpointing runs again,
    hooks and all, is an error rather than another result.
    """

    def __init__(self, discriminability: FeatureDiscriminability) -> None:
        self.discriminability = discriminability
        self.mask: Tensor | None = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if self.mask is None:
            raise RuntimeError(
                "block_discriminability needs the mask of the tokens: call the encoder, not its "
                "backbone, and without activation checkpointing that repeats the hooks of a layer"
            )
        if isinstance(out, Tensor):
            return self.discriminability(out, self.mask)
        return (self.discriminability(out[0], self.mask), *out[1:])


def _layer_list(model: Any) -> nn.ModuleList:
    count = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(
        f"name_or_path or config is of a {type(model).__name__} without a list of its layers, "
        f"num_hidden_layers={count} long; expected one, for block_discriminability"
    )


def text_sizes(model: Any, kind: str) -> tuple[int, int | None]:
    """How many token ids a text model takes, and at most in a row; None: any number.

    Args:
        model: the text model, or the text tower of a model.
        kind: name of its class, for the error.

    Raises:
        InputError: if it has no token ids.
    """
    config = getattr(model, "config", None)
    embeddings = None
    if hasattr(model, "get_input_embeddings"):
        with suppress(NotImplementedError):  # of transformers, for a model that has none
            embeddings = model.get_input_embeddings()
    size = getattr(embeddings, "num_embeddings", getattr(config, "vocab_size", None))
    if size is None:
        raise InputError(
            f"{kind} is no model of text: it has no embeddings of token ids (get_input_embeddings)"
        )
    length = getattr(config, "max_position_embeddings", None)
    if length is None or length < 0:  # -1 in XLNet: any number
        return size, None
    for name, module in model.named_modules():
        own = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
        if own and module.padding_idx is not None:  # RoBERTa counts on from it
            return size, module.num_embeddings - module.padding_idx - 1
    return size, length


def attend_empty(mask: Tensor) -> Tensor:
    """The mask ``(B, L)``, but a row without any token attends its first one, which is padding."""
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask | (first & ~mask.any(1, keepdim=True))


def check_length(tokens: int, most: int | None) -> None:
    """Raise if a caption has more tokens than a model has positions; None: any number."""
    if most is not None and tokens > most:
        raise InputError(
            f"ids has {tokens} tokens a row; expected at most {most}, the positions of the model"
        )


def build_transformer(
    name_or_path: str | Path | nn.Module | None,
    config: dict[str, Any] | str | Path | ModelConfig | None,
) -> tuple[Any, str | None, Source | None]:
    """A transformers model: one that is given, or of a name or path, or of a config.

    Args:
        name_or_path: a model name of the hub or a local folder, with its weights; or a module.
        config: instead of it, a config (a dict, a JSON file, or a config object), to start from
            random weights.

    Returns:
        The model; its name or path, None for a config or a module; and what checkpoints keep of it,
        None for a module.

    Raises:
        InputError: not exactly one of the two, a model that is not found, or a config without a
            known ``model_type``.
    """
    if (name_or_path is None) == (config is None):
        given = "None" if config is None else "both given"
        raise InputError(f"name_or_path and config are {given}; expected exactly one of the two")
    if isinstance(name_or_path, nn.Module):
        return name_or_path, None, None
    if isinstance(config, ModelConfig):
        config = config.to_dict()
    name = None if name_or_path is None else str(user_path(name_or_path))
    model = _build(name, config)
    source = None
    if not isinstance(config, dict):
        content = json.loads(model.config.to_json_string(use_diff=False))
        source = Source("transformers", str(name_or_path or config), content)
    return model, name, source


def _build(name_or_path: str | None, config: dict[str, Any] | str | Path | None) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    if name_or_path is not None and not following_weights():
        with fetching("name_or_path", name_or_path, weights_of=name_or_path), _without_bar():
            return AutoModel.from_pretrained(
                name_or_path, dtype=torch.float32, token=hub_token(), trust_remote_code=False
            )
    content = stored_content("transformers", str(name_or_path or config))
    if content is not None:
        config = content
    elif name_or_path is not None:
        with fetching("name_or_path", name_or_path):
            own = AutoConfig.from_pretrained(
                name_or_path, token=hub_token(), trust_remote_code=False
            )
        return AutoModel.from_config(own, dtype=torch.float32, trust_remote_code=False)
    elif isinstance(config, (str, Path)):
        config = read_json(user_path(config))
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"config is {config!r}; expected a mapping with a model_type")
    if config["model_type"] not in CONFIG_MAPPING:
        raise InputError(
            f"model_type of config is {config['model_type']!r}; expected one that transformers "
            f"knows{did_you_mean(str(config['model_type']), CONFIG_MAPPING)}"
        )
    own = AutoConfig.for_model(**config)
    return AutoModel.from_config(own, dtype=torch.float32, trust_remote_code=False)


@contextmanager
def _without_bar() -> Iterator[None]:
    """Let transformers show no bar of loading weights; those of downloads are the hub's."""
    from transformers.utils import logging

    def hidden(bar: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return bar(*args, **named | {"disable": True})

    before = logging.set_tqdm_hook(hidden)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def text_part(model: Any) -> Any:
    """What encodes texts: an encoder without its decoder, a tower without the other, no head."""
    config = getattr(model, "config", None)
    body = getattr(model, "base_model", model)  # of a model with a head
    if getattr(config, "is_encoder_decoder", False):
        return body.get_encoder()
    return getattr(body, "text_model", body)
