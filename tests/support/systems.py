"""The systems that the laws are tested on: a further one is a line in ``SYSTEMS``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from clip_models import clip_config
from related_shapes import RelatedShapes
from torch import Tensor, nn

from itmkit.data import Batch, ImageTextData, ShapesDataset
from itmkit.data.dataset import ImageTextDataset
from itmkit.losses import AdaptiveMarginTripletLoss
from itmkit.nn import (
    BagOfWords,
    BiGRU,
    FeatureDiscriminability,
    FusionEncoder,
    MatchingHead,
    RegionProjection,
    SharedLevels,
    TimmGrid,
    TimmLevels,
    TransformerLevels,
    TransformerText,
)
from itmkit.systems import DAIM, MATE, TVRN, DualEncoder, Matcher

DIM = 16
SPREAD = FeatureDiscriminability(scale=0.5)
BERT = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}

IMAGE: dict[str, Callable[[], nn.Module]] = {
    "regions": partial(RegionProjection, 437, DIM, hidden_dim=DIM),
    "grid": partial(TimmGrid, "test_byobnet", DIM, image_size=32, out_index=2, positions=True),
}
TEXT: dict[str, Callable[[], nn.Module]] = {
    "gru": partial(BiGRU, 64, DIM, DIM),
    "words": partial(BagOfWords, 64, DIM),
    "bert": partial(TransformerText, config=BERT, dim=DIM),
}
IMAGE_LEVELS: dict[str, Callable[[], nn.Module]] = {
    "region_levels": lambda: SharedLevels(RegionProjection(437, 8, hidden_dim=8), 2, DIM),
    "stages": partial(
        TimmLevels,
        "test_vit",
        DIM,
        out_indices=(1, 4),
        image_size=32,
        block_discriminability=SPREAD,
        level_discriminability=SPREAD,
    ),
}
TEXT_LEVELS: dict[str, Callable[[], nn.Module]] = {
    "gru_levels": lambda: SharedLevels(BiGRU(64, 8, 8), 2, DIM),
    "bert_levels": partial(
        TransformerLevels,
        config=BERT,
        layers=(1, 2),
        dim=DIM,
        block_discriminability=SPREAD,
        level_discriminability=SPREAD,
    ),
}


class Case(NamedTuple):
    """A system, what its images are, and how many views a batch has of each."""

    make: Callable[[], Matcher]
    images: Literal["regions", "four", "pixels"] = "regions"
    views: int = 1


def _mate(head: bool = False) -> MATE:
    fusion = FusionEncoder(DIM, 1, 2, dropout=0.0, attention_dropout=0.0)
    return MATE(
        IMAGE["regions"](),
        TEXT["gru"](),
        fusion,
        matching_head=MatchingHead(DIM) if head else None,
        token_drop=0.0,
        warmup=0,
        queue_size=6,
    )


def _daim(levels: bool = False) -> DAIM:
    image, text = (IMAGE_LEVELS, TEXT_LEVELS) if levels else (IMAGE, TEXT)
    names = ("region_levels", "gru_levels") if levels else ("regions", "gru")
    loss = AdaptiveMarginTripletLoss(margin=0.4, min_rows=2)
    return DAIM(image[names[0]](), text[names[1]](), loss=loss)


class OwnCaptions(DAIM):
    """A fault: images are compared with the captions of this process alone."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        scores = self.score(self.encode_image(batch.images), self.encode_text(batch.texts))
        return {"loss": self.score_loss(scores, batch.image_ids[:, None] == batch.image_ids)}


def own_captions() -> DAIM:
    """The system with that fault."""
    loss = AdaptiveMarginTripletLoss(margin=0.4, min_rows=2)
    return OwnCaptions(IMAGE["regions"](), TEXT["gru"](), loss=loss)


def _tvrn(**options: object) -> TVRN:
    return TVRN(IMAGE["regions"](), TEXT["gru"](), similarity_dim=8, chunk_pairs=20, **options)  # type: ignore[arg-type]


SYSTEMS: dict[str, Case] = {
    "mate": Case(_mate, views=2),
    "mate_matching_head": Case(partial(_mate, True), views=2),
    "daim": Case(_daim),
    "daim_levels": Case(partial(_daim, True)),
    "tvrn_sgr": Case(_tvrn),
    "tvrn_saf_global": Case(partial(_tvrn, reasoning="saf", focal="global")),
    "dual_encoder": Case(partial(DualEncoder, config=clip_config("clip")), "pixels"),
    "tvrn_four_regions": Case(partial(_tvrn, reasoning="saf", num_regions=4), "four"),
}


def dataset_of(case: Case, length: int) -> Callable[[str], ImageTextDataset]:
    """Makes the splits of a dataset with the images that a system takes."""
    if case.images == "pixels":
        return partial(ShapesDataset, length=length, image_size=32)
    return partial(RelatedShapes, length=length, four=case.images == "four")


def make_batch(case: Case, *, length: int = 8, batch_size: int = 7) -> Batch:
    """A training batch for a system, drawn from few images: two captions of one are in it."""
    dataset = dataset_of(case, length)
    data = ImageTextData(dataset, batch_size=batch_size, caption_views=case.views, seed=5)
    torch.manual_seed(0)
    return next(iter(data.train_dataloader()))
