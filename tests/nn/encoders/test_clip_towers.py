"""The towers of CLIP-like models as encoders of tokens for the three systems."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from clip_models import FAMILIES, clip_config
from systems import SYSTEMS, make_batch
from torch import nn

from itmkit.checks import InputError
from itmkit.nn import ClipModel, TransformerImage, TransformerText
from itmkit.systems import DAIM, MATE, TVRN, Matcher
from itmkit.testing import check_encoder, check_matcher

DIM = 8
TAKES_TOKENS = [name for name in FAMILIES if name != "groupvit"]  # whose groups are no grid


def towers(family: str = "siglip") -> tuple[nn.Module, nn.Module]:
    """Both towers of one model that was built, of the same width."""
    config = clip_config(family)
    config["text_config"] = config["text_config"] | {"max_position_embeddings": 66}
    model = ClipModel(config=config).backbone
    return TransformerImage(model, dim=DIM), TransformerText(model, dim=DIM)


@pytest.mark.parametrize("family", TAKES_TOKENS)
def test_towers_keep_the_contract(family: str) -> None:
    check_encoder(lambda: towers(family)[0], torch.randn(3, 3, 32, 32), None)
    texts = make_batch(SYSTEMS["dual_encoder"]).texts
    check_encoder(lambda: towers(family)[1], texts.ids, texts.mask)


def test_grid_is_row_by_row_and_without_class_tokens() -> None:
    encoder, _ = towers("clip")
    assert (encoder.grid, encoder.dim) == ((2, 2), DIM)
    pixels = torch.randn(2, 3, 32, 32)
    hidden = encoder.backbone.eval()(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(encoder(pixels)[0], encoder.projection(hidden[:, 1:]))
    patches, _ = towers("siglip2")  # which takes patches, not pixels
    assert patches(pixels)[0].shape == (2, 4, DIM)


def mate(family: str) -> Matcher:
    return MATE(*towers(family), token_drop=0.0, warmup=0)


def tvrn(family: str) -> Matcher:
    return TVRN(*towers(family), similarity_dim=8, chunk_pairs=20)


def daim(family: str) -> Matcher:
    return DAIM(*towers(family))


@pytest.mark.parametrize("make", [mate, daim])
def test_systems_of_two_towers_keep_the_laws(make: Callable[[str], Matcher]) -> None:
    case = SYSTEMS["dual_encoder"]._replace(views=2 if make is mate else 1)
    check_matcher(partial(make, "siglip"), make_batch(case), processes=1)


def test_tvrn_of_two_towers() -> None:
    batch = make_batch(SYSTEMS["dual_encoder"])
    batch.images.relations = torch.eye(4).expand(len(batch.images), 4, 4)
    terms = tvrn("clip").loss(batch)
    terms["loss"].backward()
    assert terms["loss"].isfinite()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_what_is_trained_does_not_depend_on_gradients_at_construction(family: str) -> None:
    def trained(part: nn.Module) -> list[str]:
        return [name for name, parameter in part.named_parameters() if parameter.requires_grad]

    def parts() -> list[nn.Module]:
        return [ClipModel(config=clip_config(family)), *towers(family)]

    with torch.no_grad():
        without = [trained(part) for part in parts()]
    assert without == [trained(part) for part in parts()]
    assert all(without)


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match="image_size is 64; expected 32, that of the model"):
        TransformerImage(config=clip_config("clip"), image_size=64)
    bert = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    bert |= {"num_attention_heads": 2, "intermediate_size": 8}
    with pytest.raises(InputError, match="BertModel takes no pixel_values; expected a model of"):
        TransformerImage(config=bert)
    encoder, _ = towers()
    with pytest.raises(InputError, match="mask is of shape"):
        encoder(torch.zeros(1, 3, 32, 32), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="features are 16 x 32 pixels; expected 32 x 32"):
        encoder(torch.zeros(1, 3, 16, 32))


def test_error_of_a_model_that_reads_padding_without_an_end() -> None:
    model = ClipModel(config=clip_config("siglip")).backbone
    model.text_model.config.max_position_embeddings = -1  # as in XLNet
    with pytest.raises(InputError, match="SiglipModel, which reads the padding of its captions"):
        ClipModel(model)


def test_frozen_tower_stays_in_evaluation_mode() -> None:
    encoder = TransformerImage(config=clip_config("clip"), frozen=True).train()
    assert not encoder.backbone.training
    assert not encoder(torch.zeros(1, 3, 32, 32))[0].requires_grad
