"""The systems that the laws are tested on: a further one is a line in ``SYSTEMS``.

It draws nothing at random in training (no dropout), so that runs can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle, islice, repeat
from typing import Any, Literal, NamedTuple, TypeVar

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
    CrossAttentionFusion,
    FeatureDiscriminability,
    FusionEncoder,
    GlobalBranch,
    HubnessCorrection,
    MatchingHead,
    MeanPath,
    RegionProjection,
    SharedLevels,
    StoredTokens,
    TimmGrid,
    TimmLevels,
    TransformerLevels,
    TransformerText,
    l2_normalize,
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


#: texts that come as stored features, of width 6
STORED_TEXT: dict[str, Callable[[], nn.Module]] = {
    "stored": partial(StoredTokens, 6, DIM),
    "stored_levels": partial(StoredTokens, 3, DIM, levels=2),
    "stored_regions": partial(RegionProjection, 6, DIM, hidden_dim=8),
}
PLAIN, LEVELS = ("regions", "gru"), ("region_levels", "gru_levels")


class Case(NamedTuple):
    """A system, the encoders it is built from, what its images are, and the views of each."""

    build: Callable[..., Matcher]  # from an image encoder and a text encoder, where it takes them
    encoders: tuple[str, str] | None = PLAIN
    images: Literal["regions", "four", "pixels"] = "regions"
    views: int = 1

    def make(self, image: str | None = None, text: str | None = None) -> Matcher:
        """The system, with its encoders or others by their names."""
        if self.encoders is None:
            return self.build()
        images, texts = IMAGE | IMAGE_LEVELS, TEXT | TEXT_LEVELS | STORED_TEXT
        return self.build(images[image or self.encoders[0]](), texts[text or self.encoders[1]]())

    def reading(self, image: str | None) -> Case:
        """The same, with the images that an encoder takes."""
        return self._replace(images="pixels") if image in ("grid", "stages") else self


def _mate(image: nn.Module, text: nn.Module, head: bool = False, **options: Any) -> MATE:
    fusion = FusionEncoder(DIM, 1, 2, dropout=0.0, attention_dropout=0.0)
    head_of_pairs = MatchingHead(DIM) if head else None
    options = {"fusion": fusion, "queue_size": 6, "warmup": 0} | options
    return MATE(image, text, matching_head=head_of_pairs, token_drop=0.0, **options)


def _mate_groups(image: nn.Module, text: nn.Module) -> MATE:
    fusion = CrossAttentionFusion(DIM, num_heads=2, dropout=0.0)
    correction = HubnessCorrection(6, neighbours=2)
    mate = _mate(image, text, fusion=fusion, fusion_group=7, hubness_correction=correction)
    return _with_bank(mate)


def _mate_mean_path(image: nn.Module, text: nn.Module) -> MATE:
    return _mate(image, text, fusion=None, mean_path=_mean_path())


def _mean_path() -> MeanPath:
    return MeanPath(8, hidden_dim=8, image_dropout=0.0, text_dropout=0.0)


def _daim(image: nn.Module, text: nn.Module, kind: type[DAIM] = DAIM, **options: Any) -> DAIM:
    loss = AdaptiveMarginTripletLoss(margin=0.4, min_rows=2)
    return kind(image, text, loss=loss, **options)


class OwnCaptions(DAIM):
    """A fault: images are compared with the captions of this process alone."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        scores = self.score(self.encode_image(batch.images), self.encode_text(batch.texts))
        return {"loss": self.score_loss(scores, batch.image_ids[:, None] == batch.image_ids)}


def own_captions() -> DAIM:
    """The system with that fault."""
    return _daim(IMAGE["regions"](), TEXT["gru"](), OwnCaptions)


def _tvrn(image: nn.Module, text: nn.Module, **options: Any) -> TVRN:
    return TVRN(image, text, similarity_dim=8, **{"chunk_pairs": 20} | options)


def _daim_branch(image: nn.Module, text: nn.Module) -> DAIM:
    return _daim(image, text, global_branch=GlobalBranch(_mean_path()), local_pairs=5)


def _tvrn_branch(image: nn.Module, text: nn.Module) -> TVRN:
    options = {"local_weight": 0.5, "local_pairs": 4}
    correction = HubnessCorrection(6, neighbours=2)
    branch = GlobalBranch()
    tvrn = _tvrn(image, text, global_branch=branch, hubness_correction=correction, **options)
    return _with_bank(tvrn)


def _dual_corrected() -> DualEncoder:
    correction = HubnessCorrection(6, neighbours=2)
    return _with_bank(DualEncoder(config=clip_config("clip"), hubness_correction=correction))


MatcherT = TypeVar("MatcherT", bound=Matcher)


def _with_bank(matcher: MatcherT) -> MatcherT:
    correction = matcher.hubness_correction
    assert correction is not None
    generator = torch.Generator().manual_seed(3)
    width = correction.image_bank.shape[1]
    bank = torch.randn(2, correction.size, width, generator=generator)
    correction.fill(*l2_normalize(bank))
    return matcher


SYSTEMS: dict[str, Case] = {
    "mate": Case(_mate, views=2),
    "mate_matching_head": Case(partial(_mate, head=True), views=2),
    "daim": Case(_daim),
    "daim_levels": Case(_daim, LEVELS),
    "tvrn_sgr": Case(_tvrn),
    "tvrn_saf_global": Case(partial(_tvrn, reasoning="saf", focal="global")),
    "tvrn_four_regions": Case(partial(_tvrn, reasoning="saf", num_regions=4), images="four"),
    "dual_encoder": Case(partial(DualEncoder, config=clip_config("clip")), None, "pixels"),
}
#: Further settings of them, for the tests of scores and of processes.
VARIANTS: dict[str, Case] = {
    "mate_one_view": Case(partial(_mate, views=1, distillation_weight=0.0)),
    "mate_no_fusion": Case(partial(_mate, fusion=None), views=2),
    "mate_groups": Case(_mate_groups, views=2),
    "mate_mean_path": Case(_mate_mean_path, views=2),
    "daim_branch": Case(_daim_branch),
    "tvrn_branch": Case(_tvrn_branch),
    "dual_corrected": Case(_dual_corrected, None, "pixels"),
    "mate_few_pairs": Case(partial(_mate, fusion_pairs=3), views=2),
    "daim_warming_up": Case(partial(_daim, warmup=1)),
    "tvrn_saf": Case(partial(_tvrn, reasoning="saf")),
    "tvrn_equal": Case(partial(_tvrn, focal="equal")),
    "tvrn_prob": Case(partial(_tvrn, focal="prob")),
    "tvrn_chunks": Case(partial(_tvrn, reasoning="saf", focal="global", chunk_pairs=3)),
    "tvrn_sgr_four_regions": Case(partial(_tvrn, num_regions=4), images="four"),
}
ALL = SYSTEMS | VARIANTS


def with_encoders(cases: dict[str, Case]) -> list[tuple[str, str | None, str | None]]:
    """Every system with every encoder that fits it, in pairs; None: those that it has."""
    found: list[tuple[str, str | None, str | None]] = []
    for name, case in cases.items():
        if case.encoders is None or case.images == "four":
            found.append((name, None, None))
            continue
        levels = case.encoders == LEVELS
        images, texts = (IMAGE_LEVELS, TEXT_LEVELS) if levels else (IMAGE, TEXT)
        count = max(len(images), len(texts))  # one of each side at least once, not all pairs
        found += list(islice(zip(repeat(name), cycle(images), cycle(texts)), count))
    return found


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
