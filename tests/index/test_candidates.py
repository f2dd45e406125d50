"""Searches among candidates of faiss: measured against exact search when built, exact elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import InputError
from itmkit.index import Index, build_index
from itmkit.index.candidates import FaissIndex
from itmkit.index.faiss_build import faiss_sentences
from itmkit.retrieval import Encoding
from tests.support.pictures import COLOURS, ColourEncoder, save_picture

pytest.importorskip("faiss", reason="needs itmkit[faiss]")
pytestmark = pytest.mark.extras

COUNT = 600
DIM = 16
SENTENCES = [f"red {number}" for number in range(60)]


class VectorEncoder(ColourEncoder):
    """A vector a picture that its pixels seed; a sentence with a number has a random one."""

    def encode_pixels(self, pixels: Tensor) -> Encoding:
        vectors = [self.vector(int(one.long().sum()), 0) for one in pixels]
        tokens = super().encode_pixels(pixels).tokens
        return Encoding(vector=torch.stack(vectors), tokens=tokens)

    def encode_texts(self, texts: list[str]) -> Encoding:
        numbers = [int(text.split()[-1]) for text in texts]
        return Encoding(vector=torch.stack([self.vector(number, 1) for number in numbers]))

    @staticmethod
    def vector(number: int, kind: int) -> Tensor:
        drawn = np.random.default_rng([number, kind]).normal(size=DIM)
        return F.normalize(torch.from_numpy(drawn).float(), dim=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for row in range(COUNT):
        save_picture(root / f"{row:03d}.jpg", list(COLOURS)[row % 4], shade=row, side=16)
    return root


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    columns = {"year": {f"{row:03d}.jpg": row for row in range(COUNT)}}
    build_index(VectorEncoder(), photos, tmp_path / "i", columns=columns, progress=False)
    return tmp_path / "i"


@pytest.fixture
def index(folder: Path) -> Index:
    return Index(folder, VectorEncoder())


def exact(folder: Path) -> Index:
    (folder / "faiss.json").rename(folder / "hidden")
    opened = Index(folder, VectorEncoder())
    (folder / "hidden").rename(folder / "faiss.json")
    return opened


@pytest.mark.parametrize("factory", ["IVF8,Flat", "HNSW16", "Flat", "SQ8"])
def test_naive_loop_reference_of_recall(index: Index, folder: Path, factory: str) -> None:
    """The recall that was measured is that of the hits of the opened index."""
    index.build_faiss(factory, SENTENCES)
    opened, reference = Index(folder, VectorEncoder()), exact(folder)
    build = opened.faiss
    assert build is not None
    assert reference.faiss is None
    assert build == index.faiss
    assert build.text_recall >= 0.95
    assert build.image_recall >= 0.95
    shares = []
    for sentence in SENTENCES:
        best = {hit.path for hit in reference.search(sentence)}
        shares.append(len(best & {hit.path for hit in opened.search(sentence)}) / 10)
    assert np.mean(shares) == pytest.approx(build.text_recall)


def test_scores_are_those_of_exact_search(index: Index, folder: Path) -> None:
    index.build_faiss("IVF8,Flat", SENTENCES)
    reference = {hit.path: hit.score for hit in exact(folder).search("red 3", k=COUNT)}
    hits = index.search("red 3")
    assert len(hits) == 10
    for hit in hits:
        assert hit.score == pytest.approx(reference[hit.path], abs=1e-6)
    assert index.search_many(["red 3", "red 4"]) == [hits, index.search("red 4")]


def test_candidates_alone_are_scored(
    index: Index, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this, a search that ignored faiss would pass all else."""
    index.build_faiss("Flat", SENTENCES)
    scored: list[int] = []
    monkeypatch.setattr(index.exact, "tiles", recorded(index.exact.tiles, scored))
    index.search("red 3")
    index.search(image=photos / "005.jpg", k=10)
    assert scored == [100, 110]
    index.search("red 3", where="year > 300")
    index.search("red 3", image=photos / "005.jpg")
    assert scored[2:] == [299, COUNT, COUNT]


def recorded(tiles: Any, scored: list[int]) -> Any:
    def record(names: tuple[str, ...], rows: Any = None) -> Any:
        scored.append(COUNT if rows is None else len(rows))
        return tiles(names, rows)

    return record


def test_by_a_picture(index: Index, folder: Path, photos: Path) -> None:
    index.build_faiss("IVF8,Flat", SENTENCES)
    hits = index.search(image=photos / "005.jpg", k=10)
    assert hits[0].path == photos / "005.jpg"
    best = {hit.path for hit in exact(folder).search(image=photos / "005.jpg", k=10)}
    assert len(best & {hit.path for hit in hits}) >= 9


def test_too_few_candidates_are_searched_exactly(index: Index, folder: Path) -> None:
    index.build_faiss("IVF8,Flat", SENTENCES)
    assert index.faiss is not None
    assert index.faiss.parameters.startswith("nprobe=")
    one_list = json.loads((folder / "faiss.json").read_text()) | {"parameters": "nprobe=1"}
    (folder / "faiss.json").write_text(json.dumps(one_list))
    opened = Index(folder, VectorEncoder())
    assert opened.search("red 3", k=300) == exact(folder).search("red 3", k=300)


def test_second_stage(folder: Path) -> None:
    encoder = VectorEncoder(second_stage=True)
    reference = Index(folder, encoder).search("red 3", top_k=10, weight=1.0)
    index = Index(folder, encoder)
    index.build_faiss("Flat", SENTENCES)
    assert index.search("red 3", top_k=10, weight=1.0) == reference
    assert index.search("red 3", top_k=0) != reference


def test_built_again_after_a_change(folder: Path, photos: Path, tmp_path: Path) -> None:
    index = Index(folder, VectorEncoder())
    index.build_faiss("IVF8,Flat", SENTENCES)
    before = index.faiss
    assert before is not None
    columns = {"year": {"000.jpg": 1}}
    build_index(VectorEncoder(), photos, folder, columns=columns, progress=False)
    stale = Index(folder, VectorEncoder())
    assert stale.faiss is None
    assert stale.search("red 3") == exact(folder).search("red 3")
    with pytest.raises(InputError, match="has changed; expected to be opened again"):
        index.build_faiss()
    stale.renew_faiss()
    assert stale.faiss is not None
    assert (stale.faiss.factory, stale.faiss.queries) == (before.factory, before.queries)
    assert stale.faiss.generation == before.generation + 1
    assert [path.name for path in folder.glob("faiss-*")] == [stale.faiss.file]


def test_another_process_builds_another_one(index: Index, folder: Path) -> None:
    index.build_faiss("Flat", SENTENCES)
    opened = Index(folder, VectorEncoder())
    index.build_faiss("HNSW16")
    assert opened.search("red 3") == exact(folder).search("red 3")


def test_low_recall_is_refused(index: Index, folder: Path) -> None:
    index.build_faiss("Flat", SENTENCES)
    before = (folder / "faiss.json").read_text()
    with pytest.raises(InputError, match=r"PQ1x2 finds \d+\.\d% of the 10 best pictures of a sen"):
        index.build_faiss("PQ1x2")
    assert (folder / "faiss.json").read_text() == before
    assert index.faiss is not None
    assert index.faiss.factory == "Flat"
    assert len(list(folder.glob("faiss-*"))) == 1


@pytest.mark.parametrize(
    "factory", ["", "IVF64x,Flat", "LSH", "PQ5", "IVF9999,Flat", "IDMap,Flat", "HNSW0", "HNSW1"]
)
def test_bad_factory(index: Index, folder: Path, factory: str) -> None:
    with pytest.raises(InputError, match=f"factory is '{factory}'.*; expected a factory") as error:
        index.build_faiss(factory, SENTENCES)
    assert "\n" not in str(error.value)
    assert ".cpp" not in str(error.value)
    assert not list(folder.glob("faiss*"))


def test_too_few_sentences(index: Index) -> None:
    with pytest.raises(InputError, match="queries has 1 different sentences; expected at least 50"):
        index.build_faiss("Flat", ["red 1"] * 100)
    with pytest.raises(InputError, match="queries has 0 different"):
        index.build_faiss("Flat")
    with pytest.raises(InputError, match="factory is None; expected a string"):
        index.build_faiss(queries=SENTENCES)


def test_many_sentences_are_thinned(tmp_path: Path) -> None:
    many = [f"red {number}" for number in range(1100)]
    kept = faiss_sentences(VectorEncoder(), tmp_path, "Flat", None, lambda: many)
    assert len(kept) == 500
    assert (kept[0], kept[-1]) == (many[0], many[1097])
    with pytest.raises(InputError, match="factory is None, and queries are given; expected both"):
        faiss_sentences(VectorEncoder(), tmp_path, None, many, lambda: many)


def test_model_without_one_vector(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.encoder.model, "score_fields", None)
    with pytest.raises(InputError, match="ColourMatcher compares more than one vector"):
        index.build_faiss("Flat", SENTENCES)


def test_cut_files(index: Index, folder: Path) -> None:
    index.build_faiss("Flat", SENTENCES)
    assert index.faiss is not None
    file = folder / index.faiss.file
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"faiss-0001.index is not readable, perhaps cut short"):
        Index(folder, VectorEncoder()).search("red 3")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"faiss-0001.index is missing"):
        Index(folder, VectorEncoder()).search("red 3")
    other = FaissIndex.build("Flat", 2, [torch.eye(2)], torch.eye(2))
    with file.open("wb") as opened:
        other.write(opened)
    with pytest.raises(InputError, match=r"has vectors \(2, 2\); expected \(600, 16\)"):
        Index(folder, VectorEncoder()).search("red 3")
    (folder / "faiss.json").write_text('{"factory": "Flat"}')
    with pytest.raises(InputError, match=r"faiss.json has wrong or missing entries"):
        Index(folder, VectorEncoder())


def test_one_picture(tmp_path: Path) -> None:
    save_picture(tmp_path / "photos" / "a.jpg")
    build_index(VectorEncoder(), tmp_path / "photos", tmp_path / "i", progress=False)
    index = Index(tmp_path / "i", VectorEncoder())
    index.build_faiss("Flat", SENTENCES)
    assert len(index.search("red 3")) == 1
