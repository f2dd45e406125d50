"""CLIP-like models of transformers as a system: their own scores and losses, and our laws."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_models import FAMILIES, VOCAB, clip_config, save_clip
from PIL import Image
from quiet_trainer import quiet_trainer
from systems import SYSTEMS, make_batch
from torch import Tensor, nn

import itmkit
from itmkit import Retriever
from itmkit.callbacks import MomentumTeacher
from itmkit.checks import InputError
from itmkit.data import (
    Batch,
    Images,
    ImageTextData,
    Preprocessing,
    ShapesDataset,
    Texts,
    TransformersTokenizer,
)
from itmkit.losses import (
    AdaptiveMarginTripletLoss,
    GroupTripletLoss,
    HECTLoss,
    HingeCrossEntropyLoss,
    InfoNCELoss,
    MomentumDistillationLoss,
    SigLIPLoss,
    TripletLoss,
)
from itmkit.retrieval import encode, evaluate
from itmkit.systems import DualEncoder
from itmkit.systems.build import build_system
from itmkit.testing import check_matcher, check_pairs_alone

READS_PADDING = {"siglip", "siglip2"}


def inputs() -> tuple[Images, Texts]:
    """Three images, and four captions that end in their highest id as CLIP's do."""
    mask = torch.arange(9) < torch.tensor([9, 4, 6, 1])[:, None]
    ids = torch.randint(3, VOCAB - 1, (4, 9))
    ids[range(4), mask.sum(1) - 1] = VOCAB - 1
    return Images(torch.randn(3, 3, 32, 32)), Texts(ids.masked_fill(~mask, 1), mask)


def own_inputs(family: str, images: Images, texts: Texts) -> dict[str, Tensor]:
    """What transformers wants for the same images and captions, as its processors make it."""
    pixels = {"pixel_values": images.features}
    if family == "siglip2":
        from transformers import Siglip2ImageProcessorPil

        processor = Siglip2ImageProcessorPil(
            patch_size=16, max_num_patches=4, do_resize=False, do_rescale=False, do_normalize=False
        )
        pixels = dict(processor(list(images.features.numpy()), return_tensors="pt"))
    if family in READS_PADDING:
        ids = nn.functional.pad(texts.ids, (0, 12 - texts.ids.shape[1]), value=1)
        return {**pixels, "input_ids": ids}
    return {**pixels, "input_ids": texts.ids, "attention_mask": texts.mask.long()}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers(family: str) -> None:
    matcher = DualEncoder(config=clip_config(family)).eval()
    images, texts = inputs()
    with torch.no_grad():
        own = matcher.clip.backbone(**own_inputs(family, images, texts)).logits_per_image
        found = matcher(images, texts)
    assert found.std() > 0.01
    torch.testing.assert_close(found, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_is_of_its_pair_alone(family: str) -> None:
    matcher = DualEncoder(config=clip_config(family)).double().eval()
    images, texts = inputs()
    check_pairs_alone(matcher, batch_of(Images(images.features.double()), texts))


def batch_of(images: Images, texts: Texts) -> Batch:
    """The images, each with one of the captions."""
    rows = torch.arange(len(images))
    texts = Texts(texts.ids[: len(rows)], texts.mask[: len(rows)])
    return Batch(images, texts, rows, rows, rows)


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip"])
def test_the_loss_is_that_of_transformers(family: str) -> None:
    matcher = DualEncoder(config=clip_config(family)).eval()
    batch = batch_of(*inputs())
    with torch.no_grad():
        wanted = own_inputs(family, batch.images, batch.texts)
        own = matcher.clip.backbone(**wanted, return_loss=True).loss
        terms = matcher.loss(batch)
    torch.testing.assert_close(terms["loss"], own, atol=1e-5, rtol=0)
    assert terms["contrast"] == terms["loss"]


LOSSES: dict[str, Any] = {
    "triplet": TripletLoss,
    "adaptive": partial(AdaptiveMarginTripletLoss, min_rows=2),
    "group": partial(GroupTripletLoss, group_size=1),
    "hinge_cross_entropy": HingeCrossEntropyLoss,
    "info_nce": partial(InfoNCELoss, learnt=True),
    "siglip": SigLIPLoss,
    "hect": HECTLoss,
}


def tuned(family: str = "clip", positions: int | None = None, **options: Any) -> DualEncoder:
    config = clip_config(family)
    if positions is not None:
        config["text_config"] = config["text_config"] | {"max_position_embeddings": positions}
    return DualEncoder(config=config, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_fine_tuning_with_every_loss(name: str) -> None:
    """It goes down, and no parameter that is trained is left without a gradient."""
    batch = make_batch(SYSTEMS["dual_encoder"])
    matcher = tuned(loss=LOSSES[name]())
    scale = matcher.clip.backbone.logit_scale
    assert not scale.requires_grad
    optimizer = torch.optim.SGD([p for p in matcher.parameters() if p.requires_grad], lr=1e-2)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = matcher.loss(batch)["loss"]
        loss.backward()
        assert all(p.grad is not None for p in matcher.parameters() if p.requires_grad)
        optimizer.step()
        values.append(loss.item())
    if name != "adaptive":  # whose margin moves
        assert min(values[-3:]) < values[0]


@pytest.mark.parametrize("family", ["siglip2", "align"])
def test_other_families_keep_the_laws(family: str) -> None:
    check_matcher(partial(tuned, family, 64), make_batch(SYSTEMS["dual_encoder"]), processes=1)


def test_vector_loss_and_teacher_keep_the_laws() -> None:
    make = partial(tuned, "siglip", 64, loss=HECTLoss(), distillation_weight=0.5)
    check_matcher(make, make_batch(SYSTEMS["dual_encoder"]))


def test_warmup_counts_all_negatives() -> None:
    matcher = tuned(loss=TripletLoss(negatives="hardest"), warmup=1)
    matcher.loss(make_batch(SYSTEMS["dual_encoder"]))
    assert matcher.own_loss.negatives == "all"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": nn.Linear(2, 2)}, r"loss is a Linear, which takes \(input\); expected"),
        (
            {"loss": MomentumDistillationLoss()},
            r"loss is a MomentumDistillationLoss.*; expected a loss of \(scores, positives\)",
        ),
        ({"warmup": 2}, "warmup is 2; expected 0"),
        ({"distillation_weight": -1.0}, "distillation_weight is -1.0; expected"),
        ({"distillation": MomentumDistillationLoss()}, "distillation is given, but distillation_w"),
        ({"momentum": 5.0}, "momentum is 5.0; expected a number in"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tuned(**options)


def test_a_model_of_one_kind_is_refused() -> None:
    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    config |= {"num_attention_heads": 2, "intermediate_size": 8}
    with pytest.raises(InputError, match="BertModel, without get_image_features; expected a model"):
        DualEncoder(config=config)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (Images(torch.zeros(1, 3, 30, 32)), "features are 30 x 32 pixels; expected 32 x 32"),
        (Images(torch.zeros(1, 4, 8)), r"features is .* of the shape \(1, 4, 8\); expected"),
        (Images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "features is torch.uint8"),
        (Images(torch.zeros(1, 3, 32, 32), torch.ones(1, 3) > 0), "images have a mask; expected"),
    ],
)
def test_wrong_images(images: Images, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tuned().encode_image(images)


def test_too_many_tokens_are_refused_and_padding_is_not() -> None:
    matcher = tuned("siglip").eval()
    ids = torch.randint(3, VOCAB, (2, 15))
    long, short = torch.ones(2, 15) > 0, (torch.arange(15) < 11).expand(2, -1)
    with pytest.raises(InputError, match="ids has 15 tokens a row; expected at most 12"):
        matcher.encode_text(Texts(ids, long))
    found = matcher.encode_text(Texts(ids, short)).vector
    assert torch.equal(found, matcher.encode_text(Texts(ids[:, :11], short[:, :11])).vector)


def test_frozen_model_is_not_trained() -> None:
    matcher = tuned(frozen=True).train()
    assert not matcher.clip.backbone.training
    assert not any(parameter.requires_grad for parameter in matcher.parameters())


def test_model_that_was_built() -> None:
    model = tuned("siglip").clip.backbone
    model.text_model.embeddings.requires_grad_(False)
    matcher = DualEncoder(model, pad_id=5)
    assert matcher.clip.pad_id == 5
    assert not model.text_model.embeddings.token_embedding.weight.requires_grad
    assert model.text_model.head.weight.requires_grad


def test_errors_of_a_pad_id() -> None:
    with pytest.raises(InputError, match="pad_id is 7, but a CLIPModel does not read its padding"):
        tuned("clip", pad_id=7)
    with pytest.raises(InputError, match="pad_id is -1; expected a token, 0 to "):
        tuned("siglip", pad_id=-1)


def test_evaluation_of_a_gallery() -> None:
    matcher = tuned()
    recall = evaluate(matcher, encode(matcher, [make_batch(SYSTEMS["dual_encoder"])]))
    assert 0 <= recall["rsum"] <= 600


@pytest.mark.filterwarnings("ignore:.*are unknown to the TransformersTokenizer")
def test_run_with_a_teacher_from_a_folder_to_its_end(tmp_path: Path) -> None:
    """The teacher follows, and another normalisation than the model's is warned of."""
    save_clip(tmp_path / "model")
    matcher = DualEncoder(tmp_path / "model", distillation_weight=1.0, momentum=0.5)
    tokenizer = TransformersTokenizer(tmp_path / "model", max_length=12)
    shapes = partial(ShapesDataset, image_size=32, length=8)
    data = ImageTextData(shapes, tokenizer, batch_size=4)
    before = matcher.clip.backbone.logit_scale.clone()
    trainer = quiet_trainer(tmp_path, max_steps=2, val_check_interval=1)
    with pytest.warns(UserWarning, match="model was trained with Preprocessing.* the data has"):
        trainer.fit(matcher, data)
    assert matcher.clip.backbone.logit_scale != before
    teacher = matcher.teacher.clip.backbone.logit_scale
    assert teacher != before
    assert teacher != matcher.clip.backbone.logit_scale
    assert {"train/contrast", "train/distillation", "val/rsum"} <= trainer.callback_metrics.keys()


def test_error_of_a_teacher_that_lightning_would_drop(tmp_path: Path) -> None:
    matcher = DualEncoder(config=clip_config("clip"), distillation_weight=1.0)
    trainer = quiet_trainer(tmp_path, callbacks=[MomentumTeacher(0.9)])
    with pytest.raises(InputError, match="has a MomentumTeacher, and DualEncoder makes its own"):
        trainer.fit(matcher)


@pytest.mark.filterwarnings("ignore:.*was trained with Preprocessing")
def test_a_correction_is_filled_saved_and_searched_with(tmp_path: Path) -> None:
    save_clip(tmp_path / "model", "clip")
    correction = {
        "class_path": "itmkit.nn.HubnessCorrection",
        "init_args": {"size": 4, "neighbours": 2},
    }
    plain, matcher = (
        build_system(
            {
                "class_path": "itmkit.systems.DualEncoder",
                "init_args": {"name_or_path": str(tmp_path / "model"), "hubness_correction": one},
            },
            DualEncoder,
            {},
            source="here",
        )
        for one in (None, correction)
    )
    tokenizer = TransformersTokenizer(tmp_path / "model", max_length=12)
    shapes = partial(ShapesDataset, image_size=32, length=8)
    for one in (plain, matcher):
        trainer = quiet_trainer(tmp_path, max_steps=2, val_check_interval=1)
        trainer.fit(one, ImageTextData(shapes, tokenizer, batch_size=4))
    weights = matcher.state_dict()
    bank = {name: weights.pop(name) for name in weights.keys() - plain.state_dict().keys()}
    assert len(bank) == 3
    assert all(value.any() for value in bank.values())
    torch.testing.assert_close(weights, plain.state_dict(), rtol=0, atol=0)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = DualEncoder.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    own = Preprocessing.for_transformers(tmp_path / "model")
    retriever = Retriever(again, tokenizer, own)
    retriever.save_pretrained(tmp_path / "saved")
    paths = [tmp_path / f"photos/{colour}.png" for colour in ("red", "green", "blue")]
    paths[0].parent.mkdir()
    for path in paths:
        Image.new("RGB", (40, 32), path.stem).save(path)
    index = itmkit.load(tmp_path / "saved").index(paths[0].parent, tmp_path / "index")
    found = {hit.path: hit.score for hit in index.search("a red square")}
    expected = retriever.scores(paths, ["a red square"])[:, 0]
    assert retriever.encode_images(paths).vector.shape[1] == again.clip.dim + 4
    torch.testing.assert_close(torch.tensor([found[path] for path in paths]), expected)
    assert index.search(image=paths[1], k=1)[0].path == paths[1]
