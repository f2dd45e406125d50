"""What every system gets from the base."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from tiny_matcher import OtherMatcher, TinyDataset, TinyMatcher

from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset
from itmkit.systems import evaluation


def run(folder, **options):
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2} | options,
    )


def data_of():
    return ImageTextData(TinyDataset, batch_size=2, vocabulary_min_count=1)


def test_fit_logs_recall_and_a_checkpoint_names_its_system(tmp_path):
    fit = run(tmp_path)
    fit.fit(TinyMatcher(), ImageTextData(TinyDataset, batch_size=2, vocabulary_min_count=1))
    assert 0 <= fit.callback_metrics["val/rsum"] <= 600
    fit.save_checkpoint(tmp_path / "tiny.ckpt")
    assert torch.load(tmp_path / "tiny.ckpt", weights_only=True)["system"] == "TinyMatcher"
    data = ImageTextData(TinyDataset, batch_size=2, vocabulary_min_count=1)
    again = run(tmp_path)
    again.validate(
        TinyMatcher(), data, ckpt_path=tmp_path / "tiny.ckpt", verbose=False, weights_only=True
    )
    assert again.callback_metrics["val/rsum"] == fit.callback_metrics["val/rsum"]


def test_processes_share_the_scores_of_a_validation(monkeypatch):
    asked, rank_queries = [], evaluation.rank_queries

    def noted(*args, **options):
        asked.append(options)
        return rank_queries(*args, **options)

    monkeypatch.setattr(evaluation, "rank_queries", noted)
    run(None).validate(
        TinyMatcher(), ImageTextData(TinyDataset, vocabulary_min_count=1), verbose=False
    )
    assert [options["shared"] for options in asked] == [True]


def test_error_of_a_checkpoint_of_another_system(tmp_path):
    fit = run(tmp_path, max_epochs=1)
    fit.fit(OtherMatcher(), data_of())
    fit.save_checkpoint(tmp_path / "tiny.ckpt")
    with pytest.raises(InputError, match="is of the system OtherMatcher; expected TinyM"):
        TinyMatcher.load_from_checkpoint(tmp_path / "tiny.ckpt")


def test_subclass_loads_a_checkpoint_of_its_parent(tmp_path):
    fit, tiny = run(tmp_path, max_epochs=1), TinyMatcher()
    fit.fit(tiny, data_of())
    fit.save_checkpoint(tmp_path / "tiny.ckpt")
    other = OtherMatcher.load_from_checkpoint(tmp_path / "tiny.ckpt")
    assert other.image.weight.equal(tiny.image.weight)
    with pytest.raises(InputError, match=r"of no system of itmkit; .* OtherMatcher or TinyMatcher"):
        other.on_load_checkpoint({})


class TwoSplits(ImageTextData):
    """Validates and tests on two splits, in a list or a dictionary."""

    def __init__(self, *args, named, **options):
        super().__init__(*args, **options)
        self.named = named

    def val_dataloader(self):
        loaders = super().val_dataloader(), self._evaluation("more")
        return dict(zip("ab", loaders, strict=True)) if self.named else list(loaders)

    test_dataloader = val_dataloader


def scenes(split):
    length = 8 if split in ("train", "more") else 4
    return ShapesDataset("val" if split == "more" else split, length=length, image_size=16)


@pytest.mark.parametrize("named", [False, True])
def test_recall_of_several_dataloaders(tmp_path, named):
    options = {"batch_size": 2, "eval_batch_size": 3}
    data = TwoSplits(scenes, named=named, **options)
    tiny = TinyMatcher()
    tiny.text = torch.nn.Embedding(64, 4)
    fit = run(tmp_path, max_epochs=1)
    fit.fit(tiny, data)
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    for index, split in enumerate(("val", "more")):
        alone = run(tmp_path)
        alone.validate(tiny, ImageTextData(scenes, val_split=split, **options), verbose=False)
        assert "val/rsum" in alone.callback_metrics
        for name, value in alone.callback_metrics.items():
            assert metrics[name + "/dataloader_idx_1" * index] == value
    assert metrics["val/i2t_meanr"] != metrics["val/i2t_meanr/dataloader_idx_1"]
    test = run(tmp_path)
    test.test(tiny, data, verbose=False)
    assert test.callback_metrics["test/rsum"] == metrics["val/rsum"]


@pytest.mark.parametrize("finder", [BatchSizeFinder, LearningRateFinder])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_error_of_a_callback_that_searches(tmp_path, finder, command):
    trainer = run(tmp_path, callbacks=[finder()])
    tiny = TinyMatcher()
    before = [weight.clone() for weight in tiny.parameters()]
    with pytest.raises(InputError, match=f"trainer.callbacks has a {finder.__name__}, .* none"):
        getattr(trainer, command)(tiny, data_of())
    assert all(map(torch.equal, before, tiny.parameters()))
    assert not list(tmp_path.iterdir())


def test_error_of_reranking_without_a_second_stage():
    tiny = TinyMatcher()
    tiny.rerank_top_k = 2
    with pytest.raises(ValueError, match="for a TinyMatcher, which has no second stage"):
        run(None).fit(tiny, ImageTextData(TinyDataset, batch_size=2, vocabulary_min_count=1))
    with pytest.raises(ValueError, match="for a TinyMatcher, which has no second stage"):
        run(None).validate(tiny, ImageTextData(TinyDataset, vocabulary_min_count=1), verbose=False)


@pytest.mark.parametrize(
    ("verb", "error"),
    [
        ("encode_image", "Wrong.encode_image gives a torch.float32 tensor; expected an Encoding"),
        ("encode_text", "Wrong.encode_text gives a torch.float32 tensor; expected an Encoding"),
        ("loss", "Wrong.loss gives a torch.float32 tensor; expected a dict of named terms"),
    ],
)
def test_error_of_a_verb_that_gives_a_tensor(tmp_path, verb, error):
    wrong = type("Wrong", (TinyMatcher,), {verb: lambda *_: torch.zeros(2)})()
    with pytest.raises(InputError, match=error):
        run(tmp_path).fit(wrong, data_of())


def test_error_of_terms_without_their_sum(tmp_path):
    wrong = type("Wrong", (TinyMatcher,), {"loss": lambda *_: {"b": torch.ones(()), "a": 0}})()
    with pytest.raises(InputError, match=r"loss gives the terms \['a', 'b'\]; .* under 'loss'"):
        run(tmp_path).fit(wrong, data_of())
