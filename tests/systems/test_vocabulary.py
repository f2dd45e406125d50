"""The tokenizer of the data and the text encoder of a system have the same token ids."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset, Vocabulary, WordTokenizer
from itmkit.nn import BiGRU, SharedLevels, TimmGrid, TransformerText
from itmkit.systems import DAIM, MATE, Matcher

DIM = 8
BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


class Shapes(ShapesDataset):
    """Without words of their own, so that these come from the training captions."""

    vocabulary = None


def data_of(dataset: type[ShapesDataset] = ShapesDataset, **options: Any) -> ImageTextData:
    shapes = partial(dataset, image_size=32, length=8)
    return ImageTextData(shapes, batch_size=4, caption_views=2, **options)


def mate(text_encoder: nn.Module | None = None, **options: Any) -> MATE:
    torch.manual_seed(0)
    image_encoder = TimmGrid("test_byobnet", DIM, image_size=32)
    return MATE(image_encoder, text_encoder or BiGRU(embed_dim=4, dim=DIM), **options)


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"logger": False, "accelerator": "cpu", "default_root_dir": folder}
    return Trainer(**quiet, **({"max_epochs": 1, "num_sanity_val_steps": 0} | options))


def rows(model: Matcher) -> int:
    embedding: Any = model.get_submodule("text_encoder.embedding")
    assert embedding.weight.shape[0] == embedding.vocab_size
    size: int = embedding.vocab_size
    return size


def test_embedding_optimizer_and_teacher_have_the_words_of_the_data(tmp_path: Path) -> None:
    data, model = data_of(), mate(queue_size=4)
    start = trainer(tmp_path)
    start.fit(model, data)
    assert rows(model) == data.vocabulary_size == len(data.tokenizer) > 20
    weight = model.get_parameter("text_encoder.embedding.weight")
    optimized = [p for group in start.optimizers[0].param_groups for p in group["params"]]
    assert any(p is weight for p in optimized)
    assert start.optimizers[0].state[weight]["exp_avg"].shape == weight.shape
    teacher = model.teacher.text_encoder.embedding.weight
    assert teacher.shape == weight.shape
    assert not torch.equal(teacher, weight)


def test_same_seed_same_weights_whether_measured_before_or_not(tmp_path: Path) -> None:
    first, second = mate(), mate()
    trainer(tmp_path).validate(first, data_of(), verbose=False)
    for model in (first, second):
        torch.manual_seed(1)
        trainer(tmp_path).fit(model, data_of())
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


def test_the_words_of_a_checkpoint_win(tmp_path: Path) -> None:
    small = data_of(Shapes, vocabulary_min_count=1, vocabulary_max_size=25)
    short = trainer(tmp_path, max_steps=2, max_epochs=-1)
    short.fit(mate(queue_size=4), small)
    path = tmp_path / "short.ckpt"
    short.save_checkpoint(path)
    expected = torch.load(path, weights_only=True)["state_dict"]["text_encoder.embedding.weight"]
    assert len(expected) == 30
    measured = mate(queue_size=4)
    data = data_of()  # which has other words
    trainer(tmp_path).test(measured, data, ckpt_path=path, verbose=False, weights_only=True)
    assert torch.equal(measured.get_parameter("text_encoder.embedding.weight"), expected)
    resumed = mate(queue_size=4)
    trainer(tmp_path).validate(resumed, data_of(), verbose=False)
    assert rows(resumed) > 30
    going_on = trainer(tmp_path, max_steps=4, max_epochs=-1)
    going_on.fit(resumed, data_of(), ckpt_path=path, weights_only=True)
    assert rows(resumed) == 30
    assert going_on.global_step == 4


def test_evaluation_with_a_checkpoint_counts_no_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = trainer(tmp_path)
    fitted.fit(mate(), data_of(Shapes, vocabulary_min_count=1))
    fitted.save_checkpoint(tmp_path / "mate.ckpt")
    data = data_of(Shapes)
    monkeypatch.setattr(Vocabulary, "build", lambda *args, **options: pytest.fail("counted"))
    again = trainer(tmp_path)
    again.test(mate(), data, ckpt_path=tmp_path / "mate.ckpt", verbose=False, weights_only=True)


def test_error_of_loaders_that_know_no_number_of_words(tmp_path: Path) -> None:
    loader = data_of().train_dataloader()
    with pytest.raises(InputError, match="vocab_size is None; expected a number"):
        trainer(tmp_path).fit(mate(), loader)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("levels", [False, True])
def test_error_of_a_tokenizer_with_more_ids(tmp_path: Path, command: str, levels: bool) -> None:
    words = BiGRU(6, embed_dim=4, dim=DIM)
    model: Matcher = mate(words)
    if levels:
        image = TimmGrid("test_byobnet", DIM, image_size=32)
        model = DAIM(SharedLevels(image), SharedLevels(words))
    name = "text_encoder.encoder" if levels else "text_encoder"
    message = rf"{name}.vocab_size is 6, but the WordTokenizer has \d+ ids; expected \d+"
    running = trainer(tmp_path)
    with pytest.raises(InputError, match=message):
        getattr(running, command)(model, datamodule=data_of())
    assert running.global_step == 0


def test_warning_of_a_text_model_that_is_not_that_of_the_tokenizer(tmp_path: Path) -> None:
    text = TransformerText(config={**BERT, "vocab_size": 900}, dim=DIM)
    with pytest.warns(UserWarning, match="vocab_size is 900, but the WordTokenizer has"):
        trainer(tmp_path).validate(mate(text), data_of(), verbose=False)


def test_no_warning_of_a_text_model_with_rows_to_spare(tmp_path: Path) -> None:
    """Many text models have more rows than their own tokenizer has ids."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *data_of().tokenizer.vocabulary.words]
    config = {key: value for key, value in BERT.items() if key != "model_type"}
    BertModel(BertConfig(**config, vocab_size=900)).save_pretrained(tmp_path / "bert")
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    BertTokenizerFast(vocab=vocab).save_pretrained(tmp_path / "bert")
    from itmkit.data import TransformersTokenizer

    data = data_of(tokenizer=TransformersTokenizer(tmp_path / "bert"))
    text = TransformerText(tmp_path / "bert", dim=DIM)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*vocab_size is")
        trainer(tmp_path).validate(mate(text), data, verbose=False)


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_captions_are_cut_to_what_the_text_model_takes(tmp_path: Path, command: str) -> None:
    data = data_of()
    lengths = data.test_dataloader().dataset.tokens.lengths
    assert lengths.max() > 8  # or nothing is cut
    text = TransformerText(
        config={**BERT, "vocab_size": len(data.tokenizer), "max_position_embeddings": 8}, dim=DIM
    )
    with pytest.warns(UserWarning, match="max_length is 64; captions are cut to 8 tokens"):
        getattr(trainer(tmp_path), command)(mate(text), datamodule=data)
    assert torch.equal(data.test_dataloader().dataset.tokens.lengths, lengths.clamp(max=8))


def test_a_given_tokenizer_stays_as_it_is(tmp_path: Path) -> None:
    tokenizer = WordTokenizer(data_of().tokenizer.vocabulary)
    text = TransformerText(
        config={**BERT, "vocab_size": len(tokenizer), "max_position_embeddings": 8}, dim=DIM
    )
    data = data_of(tokenizer=tokenizer)
    with pytest.warns(UserWarning, match="max_length is 64; captions are cut to 8 tokens"):
        trainer(tmp_path).validate(mate(text), datamodule=data, verbose=False)
    assert (data.tokenizer.max_length, tokenizer.max_length) == (8, 64)


def test_given_words_and_the_same_number_of_rows_are_silent(tmp_path: Path) -> None:
    tokenizer = WordTokenizer(data_of().tokenizer.vocabulary)
    text = BiGRU(len(tokenizer), embed_dim=4, dim=DIM)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*vocab_size is")
        trainer(tmp_path).validate(mate(text), data_of(tokenizer=tokenizer), verbose=False)
