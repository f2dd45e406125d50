"""Files as users have them: other encodings, and the home folder in a path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from itmkit.checks import InputError
from itmkit.configs import config_path
from itmkit.data.extract import extract_features
from itmkit.data.shapes import ShapesDataset
from itmkit.data.vocabulary import RESERVED, Vocabulary
from itmkit.files import read_json, read_text, read_yaml
from itmkit.nn import BiGRU, TimmGrid, TransformerText
from itmkit.nn.weights import load_weights
from itmkit.retrieval import write_metrics


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfa\xc3\xa9\n", "aé\n"),
        (b"a\r\nb\r\n", "a\nb\n"),
        (b"a\rb\n", "a\rb\n"),
        (b"", ""),
    ],
)
def test_read_text(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    assert read_text(tmp_path / "text") == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]".encode("utf-16"), "text is UTF-16; expected UTF-8"),
        ("[]".encode("utf-16-be"), "text is not JSON: "),
        (b"\xfe\xff\0[\0]", "text is UTF-16; expected UTF-8"),
        (b"[\n1,\n\xe9]", "text is not UTF-8: invalid continuation byte in line 3"),
        (b"[1, 2", "text is not JSON: Expecting ',' delimiter: line 1 column 6"),
        (b"[" * 100_000, "text is not JSON: "),
    ],
)
def test_error_of_a_file_that_is_no_json(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_json(tmp_path / "text")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [", "text, line 2 is not YAML: "),
        (b"a: \x00", "text is not YAML: unacceptable character #x0000"),
        (b"a: 2026-13-13", "text is not YAML: month must be in 1..12"),
        (b"a: !!python/object/apply:os.getcwd []", "text, line 1 is not YAML: could not determine"),
        (b"- a", "text holds a list of str; expected entries such as 'name: mine'"),
        (b"\xff\xfea", "text is UTF-16; expected UTF-8"),
    ],
)
def test_error_of_a_file_that_has_no_entries(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)):
        read_yaml(tmp_path / "text")


def test_an_empty_file_has_no_entries(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("# nothing\n")
    assert read_yaml(tmp_path / "text") == {}


def test_error_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="text is missing"):
        read_json(tmp_path / "text")


class Mean(nn.Module):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        return pixels.mean((2, 3))[:, None], None


HOME: dict[str, Callable[[str], object]] = {
    "words.json": Vocabulary.load,
    "weights.pt": lambda path: load_weights(nn.Linear(2, 3), path),
    "grid.pt": lambda path: TimmGrid("test_resnet", checkpoint=path, image_size=32),
    "vectors.npy": lambda path: BiGRU(7, 3, 4, word_vectors=path),
    "bert.json": lambda path: TransformerText(config=path, dim=8),
    "run.yaml": config_path,
    "features": lambda path: extract_features(
        ShapesDataset("val", length=2), Mean(), path, progress=False
    ),
    "metrics.json": lambda path: write_metrics(path, {"rsum": 1.0}, "val"),
}


@pytest.mark.parametrize("name", HOME)
def test_home_folder_in_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Vocabulary([*RESERVED, "a"]).save("~/words.json")
    torch.save(nn.Linear(2, 3).state_dict(), "weights.pt")
    torch.save(timm.create_model("test_resnet").state_dict(), "grid.pt")
    np.save("vectors.npy", np.zeros((7, 3), "float32"))
    config = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9}
    sizes = {"num_hidden_layers": 1, "intermediate_size": 8, "max_position_embeddings": 8}
    Path("bert.json").write_text(json.dumps(config | sizes))
    Path("run.yaml").write_text("")
    HOME[name](f"~/{name}")
    assert (tmp_path / name).exists()
    assert not Path("~").exists()
