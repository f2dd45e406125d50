"""Small real data: a tokenizer file, a folder of JPEGs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_cli import tiny_folder

__all__ = ["tiny_folder"]


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BERT tokenizer whose vocabulary cuts "running" and "cats" into pieces."""
    from transformers import BertTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"]
    pieces += ["a", "red", "dog", "cat", "##s", "run", "##ning", "on", "grass", "."]
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write JPEGs and a ``dataset.json``; return the paths of the JSON file and the folder."""

    def write(
        splits: dict[str, int] | None = None,
        *,
        size: tuple[int, int] = (40, 32),
        captions: int = 5,
        folder: str = "",
    ) -> tuple[Path, Path]:
        generator = np.random.default_rng(0)
        root = tmp_path / "photos"
        (root / folder).mkdir(parents=True, exist_ok=True)
        entries = []
        for split, count in (splits or {"train": 4, "val": 2, "test": 2}).items():
            for i in range(count):
                name = f"{split}_{i}.jpg"
                small = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
                Image.fromarray(small).resize(size).save(root / folder / name, quality=95)
                sentences = [
                    {"raw": f"A {word} of {split} {i}.", "tokens": ["a", word]}
                    for word in ("dog", "cat", "café", "house", "tree", "car", "sky")[:captions]
                ]
                entry = {"filename": name, "split": split, "sentences": sentences}
                entries.append({**entry, "filepath": folder} if folder else entry)
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps({"dataset": "toy", "images": entries}), encoding="utf-8")
        return path, root

    return write
