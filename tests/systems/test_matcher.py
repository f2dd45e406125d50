"""What every system gets from the base."""

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_matcher import OtherMatcher, TinyDataset, TinyMatcher

from itmkit.data import ImageTextData
from itmkit.systems import matcher


def run(folder, **options):
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2} | options,
    )


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
    asked = []
    monkeypatch.setattr(matcher, "evaluate", lambda *args, **options: asked.append(options) or {})
    run(None).validate(
        TinyMatcher(), ImageTextData(TinyDataset, vocabulary_min_count=1), verbose=False
    )
    assert [options["shared"] for options in asked] == [True]


def test_error_of_a_checkpoint_of_another_system(tmp_path):
    fit = run(tmp_path, max_epochs=1)
    fit.fit(TinyMatcher(), ImageTextData(TinyDataset, batch_size=2, vocabulary_min_count=1))
    fit.save_checkpoint(tmp_path / "tiny.ckpt")
    with pytest.raises(ValueError, match="is of the system TinyMatcher; expected OtherMatcher"):
        OtherMatcher.load_from_checkpoint(tmp_path / "tiny.ckpt")


def test_error_of_reranking_without_a_second_stage():
    tiny = TinyMatcher()
    tiny.rerank_top_k = 2
    with pytest.raises(ValueError, match="TinyMatcher has no second stage"):
        run(None).validate(tiny, ImageTextData(TinyDataset, vocabulary_min_count=1), verbose=False)
