"""The audit passes evaluations that are earned, catches those that leak, and admits ignorance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quiet_trainer import quiet_trainer
from systems import SYSTEMS, dataset_of, make_batch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.data import Batch, ImageTextData, Texts
from itmkit.metrics.functional import cross_modal_recall
from itmkit.retrieval import Encoding
from itmkit.systems import DAIM, Matcher
from itmkit.testing import Audit, audit
from itmkit.testing.audit import chance_of
from itmkit.testing.batches import joined
from itmkit.testing.pairs import Pairs

IDS = torch.arange(40)
OWNERS = IDS.repeat_interleave(2)


def vectors(noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and two captions of each, which are as close as the noise lets them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 16, generator=generator)
    captions = images[OWNERS] + noise * torch.randn(80, 16, generator=generator)
    return images, captions, IDS, OWNERS


def verdicts(found: Audit) -> dict[str, str]:
    return {check.name: check.verdict for check in found.checks}


def product(images: Tensor, texts: Tensor, ids: Tensor, owners: Tensor) -> Tensor:
    return images @ texts.T


def fused(images: Tensor, texts: Tensor, ids: Tensor, owners: Tensor) -> Tensor:
    """Each image is fused with its own captions."""
    return (images + (ids[:, None] == owners).float() @ texts) @ texts.T


def fused_by_place(images: Tensor, texts: Tensor, ids: Tensor, owners: Tensor) -> Tensor:
    """The same, own captions being those that stand where the evaluation expects them."""
    own = texts.view(len(images), 2, -1).mean(1)
    return (images + own) @ texts.T


def centred(images: Tensor, texts: Tensor, ids: Tensor, owners: Tensor) -> Tensor:
    """A score that depends on which other captions are there."""
    scores = images @ texts.T
    return scores - 3 * scores.softmax(0).mean(1, keepdim=True) * scores.mean(0)


def test_an_earned_recall_passes() -> None:
    found = audit(product, vectors(0.5), untrained=lambda *_: torch.rand(40, 80))
    assert set(verdicts(found).values()) == {"pass"}
    assert found.verdict == "pass"
    assert [check.name for check in found.checks] == [
        "as evaluated",
        "pairs permuted",
        "images are noise",
        "captions are noise",
        "untrained model",
        "another order",
        "two shards",
        "another batch size",
    ]


@pytest.mark.parametrize("score", [fused, fused_by_place])
@pytest.mark.parametrize("noise", [0.5, 100.0])
def test_images_fused_with_their_own_captions_leak(score: object, noise: float) -> None:
    found = audit(score, vectors(noise))  # type: ignore[arg-type]
    assert found.verdict == "leak"
    assert verdicts(found)["pairs permuted"] == verdicts(found)["images are noise"] == "leak"


def test_places_that_matter_leak() -> None:
    found = verdicts(audit(fused_by_place, vectors(0.5)))
    assert found["another order"] == "leak"
    assert found["two shards"] == "leak"


def test_scores_of_the_whole_gallery_leak() -> None:
    found = verdicts(audit(centred, vectors(1.0)))
    assert found["two shards"] == "leak"
    assert found["pairs permuted"] == "pass"


def test_an_untrained_model_that_knows_leaks() -> None:
    found = verdicts(audit(product, vectors(0.5), untrained=product))
    assert found["untrained model"] == "leak"
    assert found["as evaluated"] == "pass"


def test_near_chance_is_inconclusive() -> None:
    found = audit(product, vectors(100.0))
    assert found.verdict == "inconclusive"
    assert set(verdicts(found).values()) == {"inconclusive"}


def test_captions_that_all_images_of_a_few_like_best_are_no_leak() -> None:
    """Noise that looks alike to a model ranks the same captions first, here one of each image."""
    owners = torch.arange(8).repeat_interleave(5)
    liked = -torch.arange(40.0) - 100 * torch.arange(5).repeat(8)
    data = (torch.ones(8, 1), liked[:, None], torch.arange(8), owners)
    found = audit(lambda images, texts, *_: images @ texts.T, data)
    assert found.checks[0].recall["i2t_r10"] == 100
    assert verdicts(found)["images are noise"] == "inconclusive", str(found)


def test_chance_is_what_random_scores_have() -> None:
    owners = torch.tensor([0, 0, 0, 1, 2, 2, *range(3, 40)])
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand(40, 2), torch.rand(43, 2), IDS, owners)
    check = audit(lambda images, texts, *_: torch.rand(len(images), len(texts)), data).checks[0]
    draws = torch.rand(500, 40, 43, generator=generator)
    recalls = [cross_modal_recall(scores, IDS, owners) for scores in draws]
    for key, chance in chance_of(Pairs(*data)).items():
        mean = sum(recall[key] for recall in recalls) / len(recalls)
        assert mean == pytest.approx(chance, abs=1.0)
    assert check.expected == "chance: R@1 2.50 and 2.50"


def trained(name: str, folder: Path) -> tuple[Matcher, Batch]:
    """A system that knows a few images by heart, and these."""
    case = SYSTEMS[name]
    data = ImageTextData(
        dataset_of(case, 16),
        batch_size=16,
        caption_views=case.views,
        eval_batch_size=7,
        val_split="train",
    )
    torch.manual_seed(0)
    model = case.make()
    rate = 2e-3 if name == "dual_encoder" else 1e-2
    model.optimizer = lambda groups: torch.optim.Adam(groups, lr=rate)
    if hasattr(model, "chunk_pairs"):
        model.chunk_pairs = 2000  # tiny ones, which other tests want, are slow
    steps = {"dual_encoder": 200, "tvrn_sgr": 45}.get(name, 25 if "tvrn" in name else 120)
    trainer = quiet_trainer(folder, max_steps=steps, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    return model, joined(data.val_dataloader())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in ("mate", "daim", "dual_encoder") else pytest.mark.long
        )
        for name in SYSTEMS
    ],
)
def test_systems_pass(name: str, tmp_path: Path) -> None:
    model, batch = trained(name, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = audit(model, batch)
    assert found.verdict == "pass", str(found)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Peeking(DAIM):
    """DAIM that lets the words in the padding count."""

    def encode_text(self, texts: Texts) -> Encoding:
        encoding = super().encode_text(texts)
        tokens = encoding.items()["level0_tokens"]
        hidden = (texts.ids * ~texts.mask).sum(1)[:, None, None] * torch.randn(tokens.shape[1:])
        return Encoding(**encoding.items() | {"level0_tokens": tokens + hidden})


def test_padding_that_counts_leaks(tmp_path: Path) -> None:
    model, batch = trained("daim", tmp_path)
    model.__class__ = Peeking
    assert verdicts(audit(model, batch))["wrong padding"] == "leak"


def test_only_the_first_images_are_audited() -> None:
    case = SYSTEMS["daim"]
    found = audit(case.make(), [make_batch(case)], limit=3)
    assert found.images == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "data is an int; expected batches"),
        ([], "data has no batches"),
        ((torch.rand(1, 2), torch.rand(1, 2), IDS[:1], IDS[:1]), "data has 1 images"),
        ((torch.rand(2, 2), torch.rand(1, 2), IDS[:1].repeat(2), IDS[:1]), "an id twice"),
        ((torch.rand(2, 2), torch.rand(1, 2), IDS[:2], IDS[7:8]), "an id that no image has"),
        ((torch.rand(2, 2), torch.rand(1, 2), IDS[:3], IDS[:1]), "image_ids has"),
    ],
)
def test_wrong_data(data: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        audit(product, data)  # type: ignore[arg-type]


def test_scores_of_the_wrong_shape() -> None:
    with pytest.raises(InputError, match="score gives"):
        audit(lambda *_: torch.rand(3, 3), vectors(0.5))
