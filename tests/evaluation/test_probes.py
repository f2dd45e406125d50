"""How often models prefer the true sentence about a scene."""

from __future__ import annotations

import pytest
import torch
from systems import SYSTEMS
from tiny_matcher import TinyMatcher
from torch import nn

from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset
from itmkit.data.probes import scene_probes
from itmkit.data.tokenizer import CaptionTokens, WordTokenizer
from itmkit.evaluation import probe_scenes
from itmkit.retrieval import Encoding, Gallery, encode, score_matrix

SHAPES = ShapesDataset("test", length=40, counts=True)
TOKENIZER = WordTokenizer(SHAPES.vocabulary)
ROWS = torch.arange(40)


class Reader(nn.Module):
    """Knows the scene of each image and what each sentence says, as far as it is asked to use it.

    Args:
        kind: ``truth``, ``lies``, ``random``, ``constant`` or ``nan`` scores.
        second: of the second stage; None: without one.
    """

    device = torch.device("cpu")
    rerank_weight = 0.5

    def __init__(self, kind: str, second: str | None = None) -> None:
        super().__init__()
        self.kind, self.second = kind, second
        self.rerank_top_k = 0 if second is None else 4
        said = [text for one in scene_probes(SHAPES) for text in (one.true, one.false)]
        self.sentences = {tuple(TOKENIZER.encode(one.text).ids): one for one in said}
        self.read: list = []
        self.generator = torch.Generator().manual_seed(0)

    def encode_text(self, texts):
        found = []
        for ids, mask in zip(texts.ids, texts.mask, strict=True):
            self.read.append(self.sentences[tuple(ids[mask].tolist())])
            found.append(len(self.read) - 1)
        return Encoding(vector=torch.tensor(found)[:, None])

    def score(self, images, texts):
        return self.judged(self.kind, images, texts)

    def rerank(self, images, texts, pairs):
        return self.judged(self.second, images, texts)[pairs[:, 0], pairs[:, 1]]

    def judged(self, kind, images, texts):
        shape = (len(images), len(texts))
        if kind == "random":
            return torch.randn(shape, generator=self.generator)
        if kind in ("constant", "nan"):
            return torch.full(shape, 1.0 if kind == "constant" else torch.nan)
        scenes = [SHAPES.scenes[row] for row in images.vector[:, 0].tolist()]
        said = [self.read[row] for row in texts.vector[:, 0].tolist()]
        true = torch.tensor([[one.holds(scene) for one in said] for scene in scenes]).float()
        return true if kind == "truth" else -true


def gallery(rows: torch.Tensor = ROWS) -> Gallery:
    nothing = torch.zeros(0, dtype=torch.int64)
    texts = Encoding(vector=nothing[:, None])
    return Gallery(Encoding(vector=rows[:, None]), texts, rows, nothing, nothing)


@pytest.mark.parametrize(
    ("kind", "accuracy", "tied"), [("truth", 100, 0), ("lies", 0, 0), ("constant", 0, 100)]
)
@pytest.mark.parametrize("chunk_size", [7, 100])
def test_what_is_known(kind: str, accuracy: float, tied: float, chunk_size: int) -> None:
    found = probe_scenes(Reader(kind), gallery(), SHAPES, TOKENIZER, chunk_size=chunk_size)
    assert list(found) == ["colours", "relations", "counts"]
    for one in found.values():
        assert (one.accuracy, one.tied, one.second_stage) == (accuracy, tied, None)
    assert found["colours"].pairs == 200


def test_chance() -> None:
    found = probe_scenes(Reader("random"), gallery(), SHAPES, TOKENIZER)
    for one in found.values():
        assert abs(one.accuracy - 50) < 400 / one.pairs**0.5 / 2  # 4 standard errors
        assert one.tied == 0


def test_second_stage() -> None:
    found = probe_scenes(Reader("lies", "truth"), gallery(), SHAPES, TOKENIZER)
    assert (found["counts"].accuracy, found["counts"].second_stage) == (0, 100)


def test_some_of_the_scenes_in_another_order() -> None:
    rows = torch.tensor([31, 4, 17])
    found = probe_scenes(Reader("truth"), gallery(rows), SHAPES, TOKENIZER, chunk_size=2)
    assert found["colours"].pairs == 15
    assert found["colours"].accuracy == found["relations"].accuracy == 100


def test_a_bag_of_words_cannot_tell_colours_apart() -> None:
    data = ImageTextData(lambda split: ShapesDataset(split, length=30), tokenizer=TOKENIZER)
    model = TinyMatcher(words=len(TOKENIZER))
    encoded = encode(model, data.test_dataloader())
    found = probe_scenes(model, encoded, data.split("test"), TOKENIZER)
    assert (found["colours"].accuracy, found["colours"].tied) == (0, 100)
    assert found["relations"].tied < 100


@pytest.mark.parametrize("name", ["mate", "daim", "tvrn_sgr", "dual_encoder"])
def test_every_system(name: str) -> None:
    case = SYSTEMS[name]
    options = {"image_size": 32} if case.images == "pixels" else {"regions": True}
    data = ImageTextData(lambda split: ShapesDataset(split, length=4, **options))
    if name == "tvrn_sgr":
        data.relation_threshold = 0.2
    torch.manual_seed(0)
    model = case.make()
    model.rerank_top_k = 3 if name == "mate" else 0
    encoded = encode(model, data.test_dataloader())
    found = probe_scenes(model, encoded, data.split("test"), data.tokenizer)
    assert list(found) == ["colours", "relations"]
    assert found["colours"].pairs == 20
    assert (found["colours"].second_stage is None) == (name != "mate")
    # All relations at once, by their own scores.
    whole = score_matrix(model, encoded.images, encoded.texts)
    probes = [one for one in scene_probes(data.split("test")) if one.kind == "relations"]
    texts = [sentence.text for one in probes for sentence in (one.true, one.false)]
    tokens = CaptionTokens(map(data.tokenizer.encode, texts))
    with torch.no_grad():
        said = model.eval().encode_text(tokens.padded(range(len(texts)), data.tokenizer.pad_id))
    scores = score_matrix(model, encoded.images, said)
    rows = [one.image for one in probes]
    right = [bool(scores[row, 2 * i] > scores[row, 2 * i + 1] + 1e-5) for i, row in enumerate(rows)]
    assert found["relations"].accuracy == pytest.approx(100 * sum(right) / len(right))
    first = data.split("test").captions.index(probes[0].true.text)
    torch.testing.assert_close(scores[rows[0], 0], whole[rows[0], first])


def test_error() -> None:
    with pytest.raises(InputError, match="expected the scenes of ShapesDataset"):
        probe_scenes(Reader("truth"), gallery(), [], TOKENIZER)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gallery has 40 images, of which dataset has no sentence"):
        probe_scenes(Reader("truth"), gallery(ROWS + 40), SHAPES, TOKENIZER)
    with pytest.raises(InputError, match=r"score of image row 0 is nan; expected a finite"):
        probe_scenes(Reader("nan"), gallery(), SHAPES, TOKENIZER)
