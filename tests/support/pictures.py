"""Folders of real JPEGs, and an encoder of pictures and colour words without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from itmkit.data import Batch, Images, Texts
from itmkit.data.preprocessing import Preprocessing
from itmkit.retrieval import Encoding
from itmkit.systems import Matcher, cosine_scores

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250,) * 3}


def save_picture(path: Path, colour: str = "red", *, shade: int = 0, side: int = 24) -> Path:
    """A JPEG of nearly one colour; ``shade`` makes it another picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(shade)
    noise = rng.integers(-8, 8, (side, side, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def save_karpathy(folder: Path) -> tuple[Path, Path]:
    """Eight JPEGs with captions in Karpathy's form; paths of the JSON file and of the photos."""
    words = "red green blue dog cat house car tree".split()
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    entries = []
    for row in range(8):
        small = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((50, 40)).save(folder / f"images/{row}.jpg", quality=95)
        sentences = [{"raw": f"a {words[row]} beside a {word}"} for word in words[:5]]
        split = "train" if row < 6 else "val"
        entries.append({"filename": f"{row}.jpg", "split": split, "sentences": sentences})
    (folder / "data.json").write_text(json.dumps({"images": entries}))
    return folder / "data.json", folder / "images"


class ColourMatcher(Matcher):
    """Pictures by their mean colour, sentences by the colours they name."""

    score_fields = ("vector",)

    def __init__(self, second_stage: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.second_stage = second_stage

    def encode_image(self, images: Images) -> Encoding:
        colour = F.normalize(images.features.mean((2, 3)), dim=1)
        tokens = images.features.flatten(2).mT
        return Encoding(vector=self.corrected(colour, "image"), tokens=tokens)

    def encode_text(self, texts: Texts) -> Encoding:
        return Encoding(vector=self.corrected(F.normalize(texts.ids.float(), dim=1), "text"))

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        return cosine_scores(images.vector, texts.vector)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    @property
    def has_second_stage(self) -> bool:
        return self.second_stage

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        """Darker pictures first."""
        return -images.tokens.mean((1, 2))[pairs[:, 0]]


class ColourEncoder:
    """What an index needs of a Retriever, counting the pictures that it encodes."""

    def __init__(self, fingerprint: str = "colours", **kwargs: Any) -> None:
        self.model = ColourMatcher(**kwargs).eval()
        self.preprocessing = Preprocessing(size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.fingerprint = fingerprint
        self.source = None
        self.encoded = 0

    def encode_pixels(self, pixels: Tensor) -> Encoding:
        self.encoded += len(pixels)
        return self.model.encode_image(Images(self.preprocessing.normalise(pixels)))

    def encode_images(self, images: list[Any]) -> Encoding:
        opened = [
            image if isinstance(image, Image.Image) else Image.open(image) for image in images
        ]
        return self.encode_pixels(torch.stack([self.preprocessing(image) for image in opened]))

    def encode_texts(self, texts: list[str]) -> Encoding:
        found = [
            sum((np.array(COLOURS[w]) for w in t.split() if w in COLOURS), np.zeros(3))
            for t in texts
        ]
        ids = torch.tensor(np.array(found)).long()
        return self.model.encode_text(Texts(ids, torch.ones_like(ids, dtype=torch.bool)))
