"""Losses of itmkit in a real step of the SentenceTransformerTrainer, on pictures and sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from clip_models import save_clip
from pictures import COLOURS, save_picture
from PIL import Image
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.integrations.sentence_transformers import loss
from itmkit.losses import (
    Distributed,
    HECTLoss,
    InfoNCELoss,
    MomentumDistillationLoss,
    SigLIPLoss,
    TripletLoss,
    VectorLoss,
)


class Embed(nn.Module):
    """What a SentenceTransformer is to a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.linear(features["x"])}


def columns(rows: int = 5, number: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(rows, 6, generator=generator)} for _ in range(number)]


@pytest.mark.parametrize("itm_loss", [InfoNCELoss(), HECTLoss(), TripletLoss(), SigLIPLoss()])
@pytest.mark.parametrize("labels", [None, torch.tensor([3, 3, 5, 9, 5])])
def test_is_the_loss_of_the_embeddings(itm_loss: nn.Module, labels: Tensor | None) -> None:
    model = Embed()
    found = loss(itm_loss, model)(columns(), labels)
    image, text = (model.linear(one["x"]) for one in columns())
    of_vectors = itm_loss if isinstance(itm_loss, HECTLoss) else VectorLoss(itm_loss)
    assert found.item() == pytest.approx(of_vectors(image, text, labels).item())
    found.backward()
    assert model.linear.weight.grad is not None
    assert model.linear.weight.grad.abs().sum() > 0


def test_refused() -> None:
    with pytest.raises(InputError, match="itm_loss is a MomentumDistillationLoss, which takes"):
        loss(MomentumDistillationLoss(), Embed())
    with pytest.raises(InputError, match=r"expected the loss in it, and gather_across_devices=T"):
        loss(Distributed(HECTLoss()), Embed())
    whole = loss(InfoNCELoss(), Embed())
    for number in (1, 3):
        with pytest.raises(InputError, match=f"the data has {number} columns of inputs; expected"):
            whole(columns(number=number))
    for labels, message in (
        (torch.rand(5), "label is a torch.float32 tensor; expected integers"),
        (torch.ones(5, dtype=torch.bool), "label is a torch.bool tensor; expected integers"),
        (torch.ones(5, 2, dtype=torch.long), r"label has the shape \(5, 2\); expected \(5,\)"),
        (torch.ones(4, dtype=torch.long), r"label has the shape \(4,\); expected \(5,\)"),
    ):
        with pytest.raises(InputError, match=message):
            whole(columns(), labels)
    with pytest.raises(InputError, match="model is a str; expected a SentenceTransformer"):
        loss(InfoNCELoss(), "clip")
    with pytest.raises(
        InputError, match=r"itm_loss is the class InfoNCELoss, not InfoNCELoss\(\);"
    ):
        loss(InfoNCELoss, Embed())
    with pytest.raises(InputError, match=r"itm_loss is a str; expected a loss of \(scores, positi"):
        loss("info_nce", Embed())


def test_gathers_the_rows_of_all_processes() -> None:
    model, labels = Embed(), torch.tensor([3, 3, 5, 9, 5])
    for itm_loss in (HECTLoss(), InfoNCELoss()):
        gathered = loss(itm_loss, model, gather_across_devices=True)
        assert isinstance(gathered.loss, Distributed)  # which has tests of its own
        expected = loss(itm_loss, model)(columns(), labels)
        assert gathered(columns(), labels).item() == expected.item()


@pytest.mark.extras
def test_the_trainer_trains_with_it(tmp_path: Path) -> None:
    """On pictures and sentences, with a loss that has parameters of its own."""
    library = pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    save_clip(tmp_path / "clip", "clip")
    model = library.SentenceTransformer(str(tmp_path / "clip"), device="cpu")
    names = [save_picture(tmp_path / f"{name}.jpg", name) for name in COLOURS]
    rows: dict[str, Any] = {
        "image": [Image.open(name).convert("RGB") for name in names] * 2,
        "caption": [f"{end} {name}" for end in ("a dog", "the cat") for name in COLOURS],
        "label": [*range(4)] * 2,
    }
    data = datasets.Dataset.from_dict(rows)
    itm_loss = loss(SigLIPLoss(), model)
    before = {name: one.detach().clone() for name, one in itm_loss.named_parameters()}
    arguments = library.SentenceTransformerTrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        warmup_steps=0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = library.SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, loss=itm_loss
    )
    result = trainer.train()
    assert torch.tensor(result.training_loss).isfinite()
    after = dict(itm_loss.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("loss.") for name in changed)
    assert any("vision_model" in name for name in changed)
    assert any("text_model" in name for name in changed)
    assert torch.tensor(trainer.evaluate()["eval_loss"]).isfinite()
    model.save_pretrained(str(tmp_path / "trained"))
    assert "SentenceTransformerLoss" in (tmp_path / "trained/README.md").read_text()
