"""MATE, small, on real batches of the built-in dataset."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from quiet_trainer import quiet_trainer

from itmkit.callbacks import FreezeUntil, MomentumTeacher
from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset
from itmkit.losses import GroupTripletLoss, InfoNCELoss, SigLIPLoss
from itmkit.nn import (
    BiGRU,
    CrossAttentionFusion,
    FusionEncoder,
    MatchingHead,
    MeanPath,
    RegionProjection,
    TimmGrid,
)
from itmkit.retrieval import encode, evaluate, evaluating
from itmkit.systems import MATE

DIM = 16


def make_data(**options):
    options = {"batch_size": 6, "eval_batch_size": 5, "caption_views": 2} | options
    regions = options.pop("regions", False)
    dataset = partial(ShapesDataset, length={"train": 12, "val": 10}, image_size=32)
    return ImageTextData(partial(dataset, regions=regions), val_split="val", **options)


def make_mate(*, regions=False, **options):
    torch.manual_seed(0)
    image_encoder = (
        RegionProjection(437, DIM, hidden_dim=DIM)
        if regions
        else TimmGrid("test_byobnet", DIM, image_size=32, out_index=2, positions=True)
    )
    options = {"fusion": FusionEncoder(DIM, num_layers=1, num_heads=2)} | options
    return MATE(image_encoder, BiGRU(64, DIM, DIM), **options)


def test_terms_are_logged(tmp_path):
    fit = quiet_trainer(tmp_path, limit_val_batches=0)
    fit.fit(make_mate(queue_size=20), make_data())
    assert {"train/triplet", "train/hect", "train/distillation", "train/fusion"} <= set(
        fit.callback_metrics
    )


def test_loss_is_the_weighted_sum_of_its_terms():
    mate = make_mate(
        triplet_weight=0.5, hect_weight=2.0, distillation_weight=0.0, fusion_weight=3.0
    )
    batch = next(iter(make_data().train_dataloader()))
    terms = mate.loss(batch)
    assert set(terms) == {"triplet", "hect", "fusion", "loss"}
    expected = 0.5 * terms["triplet"] + 2 * terms["hect"] + 3 * terms["fusion"]
    torch.testing.assert_close(terms["loss"], expected)


def test_global_terms_naive_reference():
    mate = make_mate(token_drop=0.0, distillation_weight=0.0, fusion=None).double().eval()
    batch = next(iter(make_data().train_dataloader()))
    batch.images.features = batch.images.features.double()
    image = mate.encode_image(batch.images).vector.repeat_interleave(2, 0)
    text = mate.encode_text(batch.texts).vector
    terms = mate.loss(batch)
    torch.testing.assert_close(
        terms["triplet"], mate.triplet(image @ text.T, image_ids=batch.image_ids)
    )
    torch.testing.assert_close(
        terms["hect"], mate.hect(image, text, batch.image_ids.repeat_interleave(2))
    )


def test_fusion_term_naive_loop_reference():
    mate = make_mate(triplet_weight=0, hect_weight=0, distillation_weight=0, token_drop=0.0)
    mate.fusion.eval()
    mate.image_encoder.eval(), mate.text_encoder.eval()
    batch = next(iter(make_data().train_dataloader()))
    term = mate.loss(batch)["fusion"]
    with evaluating(mate):
        images = mate.encode_image(batch.images)
        texts = mate.encode_text(batch.texts)[::2]
        scores = mate.score(images, texts)

        def pair(i, j):
            return mate.rerank(images, texts, torch.tensor([[i, j]]))[0]

        positive, negative = [], []
        for i in range(len(images)):
            others = [j for j in range(len(images)) if batch.image_ids[j] != batch.image_ids[i]]
            positive += [pair(i, i)] * 2
            negative += [
                pair(i, max(others, key=lambda j, i=i: scores[i, j])),
                pair(max(others, key=lambda j, i=i: scores[j, i]), i),
            ]
        expected = mate.hect.from_similarities(
            torch.stack(positive), torch.stack(negative)[:, None]
        )
    torch.testing.assert_close(term, expected, atol=1e-5, rtol=1e-5)


def test_groups_naive_loop_reference():
    fusion = CrossAttentionFusion(DIM, num_heads=2, dropout=0.0)
    mate = make_mate(
        fusion=fusion, fusion_group=3, triplet_weight=0, hect_weight=0, distillation_weight=0
    ).eval()
    batch = next(iter(make_data().train_dataloader()))
    images, texts = mate.encode_image(batch.images), mate.encode_text(batch.texts)[::2]
    term = mate._fusion_loss(images, texts, batch.image_ids)
    costs = []
    for first in (0, 3):
        group = range(first, first + 3)
        for i in group:
            others = [j for j in group if batch.image_ids[j] != batch.image_ids[i]]
            for wrong in ([(i, j) for j in others], [(j, i) for j in others]):
                logits = mate.rerank(images, texts, torch.tensor([(i, i), *wrong]))
                costs.append(-logits.log_softmax(0)[0])
    assert len(set(batch.image_ids[:3].tolist())) == 3  # else another pair of a group is true
    assert len(set(batch.image_ids[3:].tolist())) == 3
    torch.testing.assert_close(term, torch.stack(costs).mean(), atol=1e-5, rtol=1e-5)


def test_what_no_loss_reads_is_not_trained():
    fusion = partial(CrossAttentionFusion, DIM, num_heads=2)

    def frozen(**options):
        mate = make_mate(**options)
        return {n.partition(".")[0] for n, p in mate.named_parameters() if not p.requires_grad}

    assert frozen(fusion=fusion()) == set()
    assert frozen(fusion=fusion(), fusion_weight=0) == {"fusion"}
    assert frozen(triplet=InfoNCELoss(learnt=True), triplet_weight=0) == {"triplet"}
    mate = make_mate(fusion=fusion(), matching_head=MatchingHead(DIM))
    names = [name for name, p in mate.fusion.named_parameters() if not p.requires_grad]
    assert set(names) == {"log_scale", "hidden.weight", "hidden.bias", "out.weight", "out.bias"}


def test_learnt_losses_are_trained_in_their_stage(tmp_path):
    mate = make_mate(
        fusion=CrossAttentionFusion(DIM, num_heads=2),
        triplet=InfoNCELoss(learnt=True),
        fusion_loss=SigLIPLoss(1.0, 0.0),
        fusion_start=2,
        lr_factors={"triplet": 100.0, "fusion_loss": 100.0},
    )
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *args):
            seen.append([loss.log_temperature.item() for loss in (mate.triplet, mate.fusion_loss)])

    trainer = quiet_trainer(tmp_path, max_steps=4, limit_val_batches=0, callbacks=[Watch()])
    trainer.fit(mate, make_data())
    of_global, of_fusion = zip(*seen, strict=True)
    assert len(set(of_global)) == 2
    assert of_global[1:] == (of_global[1],) * 3
    assert len(set(of_fusion)) == 3
    assert of_fusion[0] == of_fusion[1]


def test_second_stage_trains_the_fusion_branch_alone_and_is_fitted(tmp_path):
    mate = make_mate(
        fusion=CrossAttentionFusion(DIM, num_heads=2),
        fusion_start=2,
        rerank_top_k=4,
        rerank_weight=None,
        rerank_standardised=True,
    )
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *args):
            seen.append({n: v.clone() for n, v in mate.state_dict().items()})

    trainer = quiet_trainer(tmp_path, max_steps=5, val_check_interval=5, callbacks=[Watch()])
    trainer.fit(mate, make_data())
    first, last = seen[1], seen[-1]
    moved = {name.partition(".")[0] for name in first if not first[name].equal(last[name])}
    assert moved == {"fusion"}
    assert seen[0]["fusion.query.weight"].equal(first["fusion.query.weight"])
    assert not seen[0]["global_branch.image_pool.linear.weight"].equal(
        first["global_branch.image_pool.linear.weight"]
    )
    assert trainer.callback_metrics["val/held_out/both_stages_rsum"] >= 0
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["second_stage"]
    assert kept == {"top_k": mate.rerank_top_k, "weight": mate.rerank_weight}


def test_a_fitted_second_stage_comes_with_the_checkpoint():
    checkpoint = {"system": "MATE", "second_stage": {"top_k": 3, "weight": 0.2}}
    given = make_mate(rerank_top_k=4, rerank_weight=0.7)
    given.on_load_checkpoint(checkpoint)
    assert (given.rerank_top_k, given.rerank_weight) == (4, 0.7)
    fitted = make_mate(rerank_top_k=4, rerank_weight=None)
    assert fitted.rerank_weight == 0
    fitted.on_load_checkpoint(checkpoint)
    assert (fitted.rerank_top_k, fitted.rerank_weight) == (3, 0.2)


def test_an_untrained_model_ranks_by_chance_with_reranking():
    data = ImageTextData(partial(ShapesDataset, length=100, image_size=32), eval_batch_size=50)
    mate = make_mate(rerank_top_k=10, rerank_weight=1.0)
    dataset = data.split("val")
    gallery = encode(mate, data.val_dataloader())
    recall = evaluate(
        mate, gallery, relevance=dataset.relevance(gallery.image_ids, gallery.text_ids)
    )
    assert recall["i2t_r1"] < 20
    assert recall["t2i_r1"] < 15


def test_hinge_counts_all_negatives_while_warming_up_only(tmp_path):
    seen = []

    class Watch(GroupTripletLoss):
        def forward(self, scores, positives=None):
            seen.append(self.negatives)
            return super().forward(scores, positives)

    mate = make_mate(triplet=Watch(group_size=2), warmup=2, warmup_unit="step", fusion=None)
    quiet_trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(mate, make_data())
    assert seen == ["all", "all", "hardest", "hardest"]


def test_negatives_after_the_warmup_are_those_of_the_loss(tmp_path):
    loss = GroupTripletLoss(group_size=2, negatives="all")
    mate = make_mate(triplet=loss, warmup=1, warmup_unit="step", fusion=None)
    quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(mate, make_data())
    assert loss.negatives == "all"


def test_queue_holds_the_latest_teacher_vectors_first(tmp_path):
    mate = make_mate(queue_size=30, fusion=None)
    quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(mate, make_data())
    assert (mate.queue.ids >= 0).sum() == 24  # two batches of 6 pairs in 2 views
    torch.testing.assert_close(mate.queue.image[:24].norm(dim=1), torch.ones(24))
    assert not mate.queue.image[24:].any()
    assert [len(queue) for queue in mate.queue.latest()] == [24, 24, 24]
    other = make_mate(queue_size=30, fusion=None)
    assert other.queue.latest() == ()
    other.load_state_dict(mate.state_dict(), strict=False)  # the teacher is the callback's
    assert len(other.queue.latest()) == 3
    assert all(map(torch.equal, other.queue.latest(), mate.queue.latest()))


def test_parameter_groups_follow_lr_factors():
    mate = make_mate(lr_factors={"text_encoder": 0.1, "text_encoder.gru": 0.5})
    optimizer = mate.configure_optimizers()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(mate.text_encoder.embedding.weight)] == pytest.approx(2e-5)
    assert rates[id(mate.text_encoder.gru.weight_ih_l0)] == pytest.approx(1e-4)
    assert rates[id(mate.global_branch.image_pool.linear.weight)] == pytest.approx(2e-4)
    assert len(rates) == sum(p.requires_grad for p in mate.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": FusionEncoder(8, 1, 2)}, "text_encoder.dim 16, fusion.dim 8; expected one"),
        (
            {"views": 3, "triplet": GroupTripletLoss()},
            "triplet.group_size is 2; expected 3, as views",
        ),
        ({"fusion": None, "rerank_top_k": 5}, "rerank_top_k is 5, but there is no fusion encoder"),
        ({"hect_weight": -1.0}, "hect_weight is -1.0; expected a finite number of at least 0"),
        ({"fusion_pairs": 0}, "fusion_pairs is 0; expected 1 or more"),
        ({"fusion_group": 1}, "fusion_group is 1; expected 2 or more"),
        ({"fusion_start": 3, "fusion": None}, "fusion_start is 3, but there is no fusion loss"),
        (
            {"fusion_start": 3, "triplet_weight": 0, "hect_weight": 0, "distillation_weight": 0},
            "fusion_start is 3, but no other loss trains before it",
        ),
        ({"fusion": None, "fusion_pairs": 4}, "fusion_pairs is given, but there is no fusion enc"),
        ({"fusion": None, "fusion_group": 4}, "fusion_group is given, but there is no fusion enc"),
        ({"momentum": 5.0}, r"momentum is 5.0; expected a number in \[0, 1\]"),
        ({"fusion": None, "fusion_loss": SigLIPLoss()}, "fusion_loss is given, but there is no"),
        ({"fusion": None, "fusion_weight": 0.5}, "fusion_weight is given, but there is no fusion"),
        (
            {"triplet_weight": 0, "hect_weight": 0, "distillation_weight": 0, "fusion_weight": 0},
            "the weights of all losses are 0; expected one above 0",
        ),
        ({"rerank_weight": None}, "rerank_weight is None, to be fitted, but rerank_top_k is 0"),
        ({"rerank_weight": 1.5}, r"rerank_weight is 1.5; expected a number in \[0, 1\]"),
    ],
)
def test_error_of_an_argument(options, message):
    with pytest.raises(ValueError, match=message):
        make_mate(**options)


@pytest.mark.parametrize("own", [FreezeUntil(["image_encoder"], 2), MomentumTeacher(0.9)])
def test_error_of_a_callback_that_lightning_would_drop(tmp_path, own):
    mate = make_mate(fusion_start=2)
    with pytest.raises(InputError, match=f"trainer.callbacks has a {type(own).__name__}, and MATE"):
        quiet_trainer(tmp_path, callbacks=[own], limit_val_batches=0).fit(mate, make_data())


def test_a_trainer_is_used_again(tmp_path):
    trainer = quiet_trainer(tmp_path, limit_val_batches=0)
    trainer.fit(make_mate(fusion_start=2), make_data())
    trainer.validate(make_mate(), make_data(), verbose=False)


def test_untrained_second_stage_does_not_rank_while_training(tmp_path):
    found = []
    for rerank in (0, 8):
        mate = make_mate(fusion_start=2, rerank_top_k=rerank, rerank_weight=1.0)
        trainer = quiet_trainer(tmp_path, max_steps=1, val_check_interval=1)
        trainer.fit(mate, make_data())
        found.append({k: float(v) for k, v in trainer.callback_metrics.items() if "val" in k})
    assert found[0] == found[1]
    assert "val/rsum" in found[0]


def test_no_second_stage_without_a_fusion_loss(tmp_path):
    mate = make_mate(fusion_weight=0, rerank_top_k=4)
    with pytest.raises(ValueError, match="rerank_top_k is 4 for a MATE, which has no second stage"):
        quiet_trainer(tmp_path).fit(mate, make_data())
    with evaluating(mate):
        gallery = encode(mate, make_data().val_dataloader())
        assert [one.kind for one in mate.explain(gallery.images[:1], gallery.texts[:1])] == [
            "shares"
        ]
        with pytest.raises(ValueError, match="which has no second stage"):
            evaluate(mate, gallery)


def test_error_of_a_misspelled_lr_factor():
    mate = make_mate(lr_factors={"text_encoder.bert": 0.1})
    message = r"lr_factors has 'text_encoder.bert'; expected a prefix .* parameter of MATE"
    with pytest.raises(ValueError, match=message):
        mate.configure_optimizers()


def test_error_of_a_batch_with_another_number_of_views():
    batch = next(iter(make_data(caption_views=1).train_dataloader()))
    with pytest.raises(ValueError, match="6 texts for 6 images; expected views=2"):
        make_mate().loss(batch)


def test_error_without_a_teacher():
    batch = next(iter(make_data().train_dataloader()))
    with pytest.raises(ValueError, match="there is no teacher"):
        make_mate().loss(batch)


def test_mean_path_is_a_share_of_the_score_and_the_rest_is_explained():
    mate = make_mate(regions=True, mean_path=MeanPath(8, hidden_dim=8, share=0.25)).eval()
    gallery = encode(mate, make_data(regions=True).val_dataloader())
    image, text = gallery.images[:1], gallery.texts[:1]
    assert image.vector.shape == (1, 8 + DIM)
    with torch.no_grad():
        shares = mate.explain(image, text)[0]
    cosine = (
        mate.global_branch.mean_path.attended(image.vector)
        * mate.global_branch.mean_path.attended(text.vector)
    ).sum()
    assert shares.score == pytest.approx(0.75 * float(cosine), abs=1e-5)
    assert float(shares.maps[0].values.sum()) == pytest.approx(shares.score, abs=1e-5)


def test_mean_path_is_trained_taught_and_left_out_of_the_fusion(tmp_path):
    mate = make_mate(regions=True, mean_path=MeanPath(8, hidden_dim=8), queue_size=8)
    path = mate.global_branch.mean_path
    before = {name: value.clone() for name, value in path.named_parameters()}
    fit = quiet_trainer(tmp_path)
    fit.fit(mate, make_data(regions=True))
    assert not [n for n, value in path.named_parameters() if value.equal(before[n])]
    gallery = encode(mate, make_data(regions=True).val_dataloader())
    pairs = torch.tensor([[0, 0], [1, 2]])
    mate.eval()
    plain = mate.rerank(gallery.images, gallery.texts, pairs)
    with torch.no_grad():
        path.share_logit.add_(1.0)
    again = encode(mate, make_data(regions=True).val_dataloader())
    torch.testing.assert_close(mate.rerank(again.images, again.texts, pairs), plain)
