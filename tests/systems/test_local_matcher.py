"""DAIM and TVRN behind a global branch: what ranks, what puts in order, what is trained."""

from functools import partial

import pytest
import torch
from quiet_trainer import quiet_trainer

from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset
from itmkit.nn import BiGRU, GlobalBranch, MeanPath, RegionProjection, SharedLevels
from itmkit.retrieval import encode, evaluate
from itmkit.systems import DAIM, TVRN, Matcher

DIM = 12


def data(**options):
    options = {"batch_size": 6, "eval_batch_size": 5, "relation_threshold": 0.2} | options
    dataset = partial(ShapesDataset, length={"train": 12, "val": 10}, regions=True)
    return ImageTextData(dataset, val_split="val", **options)


def system(kind, *, branch=True, **options):
    torch.manual_seed(0)
    if branch:
        options = {"global_branch": GlobalBranch(MeanPath(8, hidden_dim=8))} | options
    own = {"similarity_dim": 6} if kind is TVRN else {}
    encoders = RegionProjection(437, DIM, hidden_dim=DIM), BiGRU(64, DIM, DIM)
    return kind(*encoders, **own, **options)


both = pytest.mark.parametrize("kind", [DAIM, TVRN])


@both
def test_vectors_rank_and_tokens_put_in_order(kind):
    model = system(kind).eval()
    gallery = encode(model, data().val_dataloader())
    images, texts = gallery.images, gallery.texts
    torch.testing.assert_close(model.score(images, texts), images.vector @ texts.vector.T)
    local = model.local_scores(images, texts)
    pairs = torch.tensor([[3, 1], [0, 7], [3, 4], [9, 7], [3, 1]])
    for asked in (pairs, pairs[:, [0, 1]][[0, 2]], pairs[[1, 3]], pairs[:0]):
        found = model.rerank(images, texts, asked)
        torch.testing.assert_close(found, local[asked[:, 0], asked[:, 1]])
    assert model.score_fields == ("vector",)
    assert system(kind, branch=False).score_fields is None


@both
def test_local_scores_are_those_of_the_system_alone(kind):
    model, alone = system(kind).eval(), system(kind, branch=False).eval()
    missing = alone.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys
    batch = next(iter(data().val_dataloader()))
    found = model.local_scores(model.encode_image(batch.images), model.encode_text(batch.texts))
    torch.testing.assert_close(found, alone(batch.images, batch.texts))


@both
def test_loss_is_global_and_of_the_first_pairs_local(kind):
    model = system(kind, local_pairs=4, local_weight=0.5).eval()
    batch = next(iter(data().train_dataloader()))
    batch.image_ids[1] = batch.image_ids[0]  # two captions of one image
    terms = model.loss(batch)
    images, texts = model.encode_image(batch.images), model.encode_text(batch.texts)
    same = batch.image_ids[:, None] == batch.image_ids
    torch.testing.assert_close(
        terms["global"], model.global_loss(images.vector @ texts.vector.T, same)
    )
    local = model.score_loss(model.local_scores(images[:4], texts[:4]), same[:4, :4])
    torch.testing.assert_close(terms["local"], local)
    torch.testing.assert_close(terms["loss"], terms["global"] + 0.5 * terms["local"])


@both
def test_a_fit_trains_all_parts_and_fits_the_second_stage(kind, tmp_path):
    model = system(kind, rerank_top_k=4, rerank_weight=None, rerank_standardised=True)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = quiet_trainer(tmp_path, val_check_interval=3)
    trainer.fit(model, data())
    still = [name for name, value in model.named_parameters() if value.equal(before[name])]
    assert not [name for name in still if "global_branch" in name or "image_encoder" in name]
    assert "val/held_out/both_stages_rsum" in trainer.callback_metrics
    assert {"train/global", "train/local"} <= set(trainer.callback_metrics)
    assert evaluate(model, encode(model, data().val_dataloader()))["rsum"] > 0


@both
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"global_loss": torch.nn.Identity()}, "global_loss"),
        ({"local_weight": 0.5}, "local_weight"),
        ({"local_pairs": 4}, "local_pairs"),
        ({"rerank_top_k": 4}, "rerank_top_k"),
    ],
)
def test_options_of_a_global_branch_that_is_not_there(kind, options, name):
    with pytest.raises(InputError, match=f"{name} is .*global_branch"):
        system(kind, branch=False, **options)


@both
def test_a_global_branch_of_several_views_is_refused(kind):
    with pytest.raises(
        InputError, match=f"global_branch.views is 2; expected 1, for a {kind.__name__}"
    ):
        system(kind, global_branch=GlobalBranch(views=2))


@both
def test_a_checkpoint_is_loaded_with_its_branch(kind, tmp_path):
    trainer = quiet_trainer(tmp_path)
    model = system(kind, local_weight=0.0)
    trainer.fit(model, data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = system(kind, local_weight=0.0)
    again.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    batch = next(iter(data().val_dataloader()))
    torch.testing.assert_close(
        again.eval()(batch.images, batch.texts), model.eval()(batch.images, batch.texts)
    )
    assert isinstance(model, Matcher)


@both
def test_every_trained_parameter_has_a_gradient_without_a_local_loss(kind):
    model = system(kind, local_weight=0.0)
    model.loss(next(iter(data().train_dataloader())))["loss"].backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_levels_that_no_loss_would_read():
    encoders = [SharedLevels(encoder, 2, DIM) for encoder in (RegionProjection(437), BiGRU(64))]
    with pytest.raises(InputError, match="local_weight is 0 with encoders of 2 levels"):
        DAIM(*encoders, global_branch=GlobalBranch(), local_weight=0.0)


@both
def test_second_stage_in_an_exported_graph(kind):
    """It scores all pairs and takes those asked for: no loop over values."""
    model = system(kind).eval().requires_grad_(False)
    batch = next(iter(data().val_dataloader()))
    images, texts = model.encode_image(batch.images), model.encode_text(batch.texts)

    class Rerank(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pairs):
            return self.model.rerank(images, texts, pairs)

    pairs = torch.tensor([[2, 1], [0, 3], [2, 4]])
    program = torch.export.export(
        Rerank(), (pairs,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    for asked in (pairs, pairs[:2]):
        torch.testing.assert_close(program.module()(asked), model.rerank(images, texts, asked))


@both
def test_scores_that_are_not_trained_are_no_second_stage(kind):
    assert system(kind).has_second_stage
    assert not system(kind, local_weight=0.0).has_second_stage
    assert not system(kind, branch=False).has_second_stage


@both
def test_more_local_pairs_than_the_batch_has_are_all_of_it(kind):
    batch = next(iter(data().train_dataloader()))
    losses = [system(kind, local_pairs=count).eval().loss(batch)["loss"] for count in (None, 999)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("side", [0, 1])
def test_pairs_of_one_image_or_caption_are_scored_at_once(side, monkeypatch):
    model = system(DAIM).eval()
    batch = next(iter(data().val_dataloader()))
    images, texts = model.encode_image(batch.images), model.encode_text(batch.texts)
    calls, own = [], model.local_scores
    monkeypatch.setattr(model, "local_scores", lambda *both: calls.append(1) or own(*both))
    pairs = torch.tensor([[1, 0], [1, 2], [1, 4], [1, 3]])
    model.rerank(images, texts, pairs if side == 0 else pairs.flip(1))
    assert len(calls) == 1


def test_the_global_branch_reads_the_last_level():
    torch.manual_seed(0)
    encoders = [SharedLevels(encoder, 2, DIM) for encoder in (RegionProjection(437), BiGRU(64))]
    model = DAIM(*encoders, global_branch=GlobalBranch()).eval()
    batch = next(iter(data().val_dataloader()))
    images, texts = batch.images, batch.texts
    regions = model.image_encoder(images.features, images.mask)[-1]
    words = model.text_encoder(texts.inputs, texts.mask)[-1]
    branch = model.global_branch
    for found, expected in [
        (model.encode_image(images), branch.image(images.features, images.mask, regions)),
        (model.encode_text(texts), branch.text(texts.inputs, texts.mask, words)),
    ]:
        torch.testing.assert_close(found.vector, expected)
