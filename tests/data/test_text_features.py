"""Batches whose captions come as stored token features."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet_trainer import quiet_trainer
from text_models import WIDTH, save_text_model

from itmkit.data import (
    Batch,
    CaptionNoise,
    ImageTextData,
    ShapesDataset,
    Texts,
    TransformersTokenizer,
    WordTokenizer,
    extract_text_features,
)
from itmkit.nn import BiGRU, RegionProjection, StoredTokens, TransformerText
from itmkit.nn.encoders.transformer_backbone import TransformerBackbone
from itmkit.systems import MATE

pytestmark = pytest.mark.filterwarnings("ignore:.*are unknown to the TransformersTokenizer")
SPLITS = ("train", "val")


def shapes(split: str) -> ShapesDataset:
    return ShapesDataset(split, length=6, regions=True)


def extract(name: str, output: Path, *splits: str, max_length: int = 64) -> None:
    text = TransformerBackbone(name, None, layers=[-1], layers_name="layers", frozen=True)
    tokenizer = TransformersTokenizer(name, max_length=max_length)
    for split in splits or SPLITS:
        extract_text_features(
            shapes(split).captions,
            text,
            tokenizer,
            output,
            split=split,
            name="bert",
            dtype="float32",
            progress=False,
        )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A text model, and the features that it gave."""
    folder = tmp_path_factory.mktemp("stored")
    name = save_text_model(folder / "bert")
    extract(name, folder / "out")
    return name, folder / "out"


def data(features: Path | None, tokenizer: Any = None, **options: Any) -> ImageTextData:
    options = {"batch_size": 7, "eval_batch_size": 4, "caption_views": 2} | options
    return ImageTextData(shapes, tokenizer, text_features=features, **options)


def batches(data: ImageTextData) -> list[Batch]:
    data.setup("fit")
    return [*data.train_dataloader(), *data.val_dataloader()]


@pytest.mark.parametrize(
    "options",
    [{}, {"distinct_captions": True}, {"bucket_batches": 2}, {"num_workers": 1}],
    ids=["plain", "distinct", "buckets", "worker"],
)
def test_batches_are_those_of_the_tokenizer_with_features(
    stored: tuple[str, Path], options: dict[str, Any]
) -> None:
    name, folder = stored
    expected = batches(data(None, TransformersTokenizer(name), **options))
    found = batches(data(folder, **options))
    assert len(found) == len(expected) == 4 + 2
    text = TransformerText(name, frozen=True)
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own.text_ids, other.text_ids)
        assert torch.equal(own.texts.ids, other.texts.ids)
        assert torch.equal(own.texts.mask, other.texts.mask)
        features = own.texts.features
        assert features is not None
        assert torch.equal(own.texts.inputs, features)
        assert torch.equal(other.texts.inputs, other.texts.ids)
        assert features.shape == (*own.texts.ids.shape, WIDTH)
        torch.testing.assert_close(
            features, text(other.texts.ids, other.texts.mask).tokens, atol=1e-5, rtol=1e-4
        )


def test_the_loss_is_that_of_the_frozen_model_in_every_step(stored: tuple[str, Path]) -> None:
    name, folder = stored
    live = TransformerText(name, dim=4, frozen=True)
    ends = StoredTokens(WIDTH, 4)
    ends.projections[0].load_state_dict(live.projection.state_dict())
    system = MATE(RegionProjection(437, 4, hidden_dim=4), live, distillation_weight=0.0)
    losses = []
    for encoder, module in ((live, data(None, TransformersTokenizer(name))), (ends, data(folder))):
        system.text_encoder = encoder
        batch = batches(module)[0]
        torch.manual_seed(0)
        losses.append(system.loss(batch)["loss"].detach())
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


def test_no_tokenizer_is_needed_and_the_same_one_does_no_harm(stored: tuple[str, Path]) -> None:
    name, folder = stored
    own = data(folder)
    own.setup("fit")
    assert own.vocabulary_size == len(TransformersTokenizer(name))
    assert "vocabulary" not in own.state_dict()
    with pytest.raises(ValueError, match=r"caption is 'a dog', but the data has text_features and"):
        own.tokenizer.encode("a dog")
    given = TransformersTokenizer(name)
    given.encode("a red circle")
    batches(data(folder, given))


def test_workers_are_not_sent_the_features(stored: tuple[str, Path]) -> None:
    own = data(stored[1])
    own.setup("fit")
    tokens = pickle.loads(pickle.dumps(own.train_dataloader().dataset.tokens))
    assert tokens.file._array is None
    texts = tokens.padded([3, 1], 0)
    expected = own.train_dataloader().dataset.tokens.padded(torch.tensor([3, 1]), 0)
    assert isinstance(texts, Texts)
    assert torch.equal(texts.features, expected.features)


def test_captions_are_predicted(stored: tuple[str, Path]) -> None:
    own = data(stored[1], test_split="val")
    own.setup("predict")
    texts = [batch.texts for batch in own.predict_dataloader()]
    assert sum(map(len, texts)) == len(shapes("val").captions)
    assert all(part.features is not None for part in texts)


def refused(told: str, module: ImageTextData, stage: str = "fit") -> None:
    with pytest.raises(ValueError, match=told):
        module.setup(stage)


def test_error_of_features_that_do_not_fit(stored: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = stored
    with pytest.raises(ValueError, match="noise and text_features are both given; expected one"):
        data(folder, noise=CaptionNoise())
    other = save_text_model(tmp_path / "other", seed=1)
    extract(other, tmp_path / "mixed", "train")
    extract(name, tmp_path / "mixed", "val")
    refused(
        r"val_tokens.npy has features of another text model than .*train.*weights",
        data(tmp_path / "mixed"),
    )
    refused(
        r"train_tokens.npy was made with another tokenizer, that of 'bert': max_length is 64, "
        "that of the data's 9; leave tokenizer out",
        data(folder, TransformersTokenizer(name, max_length=9)),
    )
    refused(
        "another tokenizer, .*: tokenizer is", data(folder, WordTokenizer(ShapesDataset.vocabulary))
    )
    few = ImageTextData(lambda split: ShapesDataset(split, length=9), text_features=folder)
    refused(r"train_tokens.npy lacks the caption '.*', in all 15 of the 45 captions", few)
    with pytest.raises(FileNotFoundError, match=r"test_tokens.npy is missing; .* train, val"):
        data(folder).setup("test")


def test_a_checkpoint_knows_its_text_model(stored: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = stored
    own, other = data(folder), data(tmp_path / "out")
    extract(save_text_model(tmp_path / "other", seed=1), tmp_path / "out")
    own.setup("fit")
    other.setup("fit")
    state = own.state_dict()
    assert state["text_features"]["text_model"] == "bert"
    own.load_state_dict(state)
    with pytest.raises(ValueError, match="of another text model than the checkpoint, 'bert' and"):
        other.load_state_dict(state)


def test_error_of_an_encoder_of_ids(stored: tuple[str, Path], tmp_path: Path) -> None:
    system = MATE(RegionProjection(437, 4, hidden_dim=4), BiGRU(None, 4, 4))
    message = "text_encoder is a BiGRU, which takes token ids, but text_features"
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path).fit(system, datamodule=data(stored[1]))
    system = MATE(RegionProjection(437, 4, hidden_dim=4), StoredTokens(WIDTH, 4))
    with pytest.raises(ValueError, match=r"features is a torch.int64 tensor; .*: text_features of"):
        quiet_trainer(tmp_path).fit(system, datamodule=data(None))
