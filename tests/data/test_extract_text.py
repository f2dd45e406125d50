from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from text_models import WIDTH, save_text_model
from torch import Tensor

from itmkit.data import ShapesDataset, TransformersTokenizer, extract_text_features
from itmkit.data.extract_text import _BATCHES
from itmkit.data.token_file import TokenFile
from itmkit.nn.encoders.transformer_backbone import TransformerBackbone

CAPTIONS = ShapesDataset("train", length=20).captions
CAPTIONS += CAPTIONS[:3]


class TextModel(TransformerBackbone):
    """Can stop, as if interrupted, at a call to come."""

    stop_at: int | None = None
    calls = 0

    def hidden_states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        assert not any(part.training for part in self.modules())
        return super().hidden_states(ids, mask)


def model(folder: Path, layers: Sequence[int] = (-1,), **options: Any) -> TextModel:
    name = save_text_model(folder, **options)
    return TextModel(name, None, layers=layers, layers_name="layers", frozen=True)


def extract(text: TextModel, output: Path, *, max_length: int = 64, **options: Any) -> Path:
    tokenizer = TransformersTokenizer(str(text.name_or_path), max_length=max_length)
    given = {"captions": CAPTIONS, "split": "train", "batch_size": 2, "name": "bert"} | options
    return extract_text_features(
        backbone=text, tokenizer=tokenizer, output=output, progress=False, **given
    )


def test_features_are_those_of_the_model_caption_by_caption(tmp_path: Path) -> None:
    text = model(tmp_path / "bert").train()
    path = extract(text, tmp_path / "out")
    assert text.training
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "train_tokens.json",
        "train_tokens.jsonl",
        "train_tokens.npy",
    ]
    file = TokenFile(tmp_path / "out", "train")
    assert file.array.dtype == np.float16
    distinct = list(dict.fromkeys(CAPTIONS))
    assert len(distinct) < len(CAPTIONS)  # and each is stored once
    tokenizer = TransformersTokenizer(str(text.name_or_path))
    ids = [tokenizer.encode(caption).ids for caption in distinct]
    assert len(file) == sum(map(len, ids))
    rows = file.rows_of(CAPTIONS, "train").tolist()
    for row in (0, 7, len(CAPTIONS) - 1):
        own = torch.tensor([tokenizer.encode(CAPTIONS[row]).ids])
        assert file.tokens[rows[row]].ids == own[0].tolist()
        text.eval()
        (expected,) = text.hidden_states(own, torch.ones_like(own, dtype=torch.bool))
        torch.testing.assert_close(file.read([rows[row]]), expected, atol=2e-3, rtol=1e-3)
    padded = file.read(rows[:9])
    lengths = file.tokens.lengths[rows[:9]]
    assert padded.shape == (9, int(lengths.max()), WIDTH)
    assert all(not padded[i, n:].any() for i, n in enumerate(lengths.tolist()))


def test_captions_are_cut_as_in_training(tmp_path: Path) -> None:
    text = model(tmp_path / "bert")
    extract(text, tmp_path / "out", max_length=5)
    tokens = TokenFile(tmp_path / "out", "train").tokens
    assert int(tokens.lengths.max()) == 5
    assert tokens[0].ids[-1] == TransformersTokenizer(str(text.name_or_path)).encode("a").ids[-1]


def test_several_layers_are_stored_side_by_side(tmp_path: Path) -> None:
    name = save_text_model(tmp_path / "bert", layers=2)
    text = TextModel(name, None, layers=(0, 2), layers_name="layers", frozen=True).eval()
    extract(text, tmp_path / "out", dtype="float32")
    file = TokenFile(tmp_path / "out", "train")
    assert (file.shape[1], file.notes["layers"]) == (2 * WIDTH, [0, 2])
    ids = torch.tensor([file.tokens[3].ids])
    states = text.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(file.read([3]), torch.cat(states, dim=-1), atol=1e-5, rtol=1e-5)


def test_stopped_extraction_goes_on_behind_the_last_whole_block(tmp_path: Path) -> None:
    text = model(tmp_path / "bert")
    extract(text, tmp_path / "whole")
    calls = text.calls
    assert calls > 2 * _BATCHES
    text.calls, text.stop_at = 0, _BATCHES + 3
    output = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        extract(text, output)
    assert sorted(p.name for p in output.iterdir()) == [
        "train_tokens.npy.part",
        "train_tokens_progress.json",
    ]
    with pytest.raises(FileNotFoundError, match=r"train_tokens.npy is missing; .* holds no split"):
        TokenFile(output, "train")
    text.calls, text.stop_at = 0, None
    extract(text, output)
    assert text.calls == calls - _BATCHES
    for path in (tmp_path / "whole").iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()
    text.calls = 0
    extract(text, output)  # nothing is left to do
    assert text.calls == 0
    assert len(list(output.iterdir())) == 3


@pytest.mark.parametrize("stop_at", [_BATCHES + 1, None])
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "weights"),
        ({"max_length": 7}, "max_length"),
        ({"captions": CAPTIONS[:-9]}, "captions"),
        ({"dtype": "float32"}, "dtype"),
        ({"name": "other"}, "text_model"),
    ],
)
def test_error_of_other_settings(
    tmp_path: Path, stop_at: int | None, change: dict[str, Any], key: str
) -> None:
    text, output = model(tmp_path / "bert"), tmp_path / "out"
    text.stop_at = stop_at
    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            extract(text, output)
    else:
        extract(text, output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    other = model(tmp_path / "bert", seed=change.get("seed", 0))
    with pytest.raises(ValueError, match=f"made with other settings: {key} is"):
        extract(other, output, **{key: value for key, value in change.items() if key != "seed"})
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_error_of_a_feature_that_is_not_finite_names_the_caption(tmp_path: Path) -> None:
    text = model(tmp_path / "bert")
    text.backbone.encoder.layer[0].output.LayerNorm.weight.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"features of the caption 'a .*' are not finite in float"):
        extract(text, tmp_path / "out")
    extract(text, tmp_path / "large", dtype="float32")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"captions": []}, "split 'train' has no captions"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"device": "gpu"}, "device is 'gpu'; expected one of this machine"),
    ],
)
def test_error_of(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        extract(model(tmp_path / "bert"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_error_of_a_model_for_fewer_ids_or_tokens(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer gives up to .*; expected at most 6, the pos"):
        extract(model(tmp_path / "bert", longest=6), tmp_path / "out")
    text = model(tmp_path / "bert")
    text.vocab_size = 7
    with pytest.raises(ValueError, match="expected at most 7, those of the text model"):
        extract(text, tmp_path / "out")


def test_error_of_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=335))
    with pytest.raises(OSError, match=r"need .* bytes, but only 335 are free: '.*out'"):
        extract(model(tmp_path / "bert"), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: (f / "train_tokens.jsonl").unlink(), r"train_tokens\.jsonl is missing"),
        (lambda f: (f / "train_tokens.json").unlink(), r"train_tokens\.json is missing"),
        (lambda f: (f / "train_tokens.json").write_text("{}"), "is not what itmkit extract --text"),
        (
            lambda f: (f / "train_tokens.jsonl").write_text("[1\n"),
            r"jsonl is not what itmkit extract --text_model writes: line 1",
        ),
        (
            lambda f: (f / "train_tokens.jsonl").write_text('["a", [2, 3]]\n'),
            r"jsonl was changed since train_tokens\.json was written; extract anew",
        ),
        (
            lambda f: np.save(f / "train_tokens.npy", np.zeros((3, 8), "float16")),
            r"has 3 rows; expected \d+, one for every token",
        ),
        (
            lambda f: np.save(f / "train_tokens.npy", np.zeros((3, 2, 8), "float16")),
            r"expected rank 2, \(tokens, dim\)",
        ),
        (lambda f: (f / "train_tokens.npy").write_bytes(b"x"), "is not a whole .npy file"),
    ],
)
def test_error_of_a_file_that_is_not_whole(tmp_path: Path, change: Any, told: str) -> None:
    extract(model(tmp_path / "bert"), tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        TokenFile(tmp_path / "out", "train")


def test_error_of_what_the_file_lacks(tmp_path: Path) -> None:
    extract(model(tmp_path / "bert"), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"test_tokens.npy is missing; .* the splits train"):
        TokenFile(tmp_path / "out", "test")
    with pytest.raises(FileNotFoundError, match=r"text_features='.*none' is not a folder"):
        TokenFile(tmp_path / "none", "test")
    file = TokenFile(tmp_path / "out", "train")
    with pytest.raises(ValueError, match="lacks the caption 'a zebra', in all 1 of the 2 captions"):
        file.rows_of([CAPTIONS[0], "a zebra"], "train")


def test_error_of_a_value_that_is_not_finite_and_of_a_file_that_changed(tmp_path: Path) -> None:
    path = extract(model(tmp_path / "bert"), tmp_path / "out")
    stored = np.load(path)
    stored[2, 3] = np.inf
    np.save(path, stored)
    file = TokenFile(tmp_path / "out", "train")
    with pytest.raises(ValueError, match="has a value that is not finite in row 2: inf"):
        file.read([0])
    path.touch()
    np.save(path, stored)
    with pytest.raises(ValueError, match="was changed while it was in use"):
        file.read([1])


def test_notes_are_readable(tmp_path: Path) -> None:
    extract(model(tmp_path / "bert"), tmp_path / "out")
    notes = json.loads((tmp_path / "out/train_tokens.json").read_text())
    assert (notes["text_model"], notes["layers"], notes["max_length"]) == ("bert", [-1], 64)
    line = json.loads((tmp_path / "out/train_tokens.jsonl").read_text().splitlines()[0])
    assert line[0] == CAPTIONS[0]
