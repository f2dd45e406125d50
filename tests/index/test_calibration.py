"""Probabilities of hits: whether they mean what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.index import Calibration, Index, build_index
from tests.support.pictures import ColourEncoder, save_picture


def made_up(queries: int, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of which the right ones are higher, more so for easy queries."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(queries, images, generator=generator)
    right = torch.zeros(queries, images, dtype=torch.bool)
    own = torch.randint(images, (queries,), generator=generator)
    right[torch.arange(queries), own] = True
    return scores + right * (2.5 + 2 * torch.rand(queries, 1, generator=generator)), right


def test_probabilities_are_right_as_often_as_they_say() -> None:
    calibration = Calibration.fit(*made_up(2000, 200, 0))
    for estimate, share, count in calibration.reliability:
        if count > 100:
            assert abs(estimate - share) < 0.08
    scores, right = made_up(2000, 200, 1)
    without = scores.masked_fill(right, -9)
    named = hits = covered = 0
    for offered, there in ((scores, True), (without, False)):
        best = offered.topk(10, dim=1)
        for row in range(2000):
            if calibration.probabilities(best.values[row])[0] >= calibration.threshold:
                named += 1
                covered += there
                hits += int(there and right[row, best.indices[row, 0]])
    assert abs(hits / named - calibration.precision) < 0.05
    assert abs(covered / 2000 - calibration.coverage) < 0.05
    assert calibration.precision > 0.6


def test_order_is_that_of_the_scores() -> None:
    calibration = Calibration.fit(*made_up(500, 50, 0))
    found = calibration.probabilities(torch.linspace(4, 0, 12))
    assert (found.diff() <= 0).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_few_images_and_several_right_ones() -> None:
    scores, right = made_up(300, 5, 2)
    right[:, 0] = True
    calibration = Calibration.fit(scores, right)
    assert 0 <= calibration.precision <= 1
    assert calibration.probabilities(torch.tensor([2.0])).shape == (1,)


def test_stored_as_json() -> None:
    calibration = Calibration.fit(*made_up(200, 50, 0))
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_errors() -> None:
    scores, right = made_up(40, 50, 0)
    with pytest.raises(InputError, match="40 queries have right and wrong images; expected 50"):
        Calibration.fit(scores, right)
    with pytest.raises(InputError, match="threshold is 1"):
        Calibration.fit(*made_up(60, 50, 0), threshold=1)


@pytest.mark.parametrize("standardised", [False, True])
def test_a_second_stage_leaves_hits_their_probabilities(tmp_path: Path, standardised: bool) -> None:
    for row in range(12):
        save_picture(tmp_path / "photos" / f"{row}.jpg", ("red", "green")[row % 2], shade=row)
    encoder = ColourEncoder(second_stage=True, rerank_top_k=8, rerank_standardised=standardised)
    build_index(encoder, tmp_path / "photos", tmp_path / "index", progress=False)
    index = Index(tmp_path / "index", encoder)
    index.calibrate(Calibration((40.0, 1.0, 1.0, -30.0), 12, 0.5, 0.9, 0.8))
    first, both = index.search("red", k=12, top_k=0), index.search("red", k=12)
    assert [hit.path for hit in first] != [hit.path for hit in both]
    chances = {hit.path: hit.probability for hit in first}
    assert chances == {hit.path: hit.probability for hit in both}
    assert max(chances.values()) > 0.9
    assert min(chances.values()) < 0.1
    assert index.verdict(both) == index.verdict(both[::-1]) == ""
    assert "nothing matches" in index.verdict([hit for hit in both if hit.probability < 0.5])
    assert "nothing matches" in index.verdict([])


def test_hits_of_an_index(tmp_path: Path) -> None:
    for row in range(12):
        save_picture(tmp_path / "photos" / f"{row}.jpg", ("red", "green")[row % 2], shade=row)
    encoder = ColourEncoder()
    build_index(encoder, tmp_path / "photos", tmp_path / "index", progress=False)
    calibration = Calibration((4.0, 1.0, 1.0, -2.0), 12, 0.5, 0.9, 0.8)
    assert Index(tmp_path / "index", encoder).search("red")[0].probability is None
    index = Index(tmp_path / "index", encoder)
    index.calibrate(calibration)
    index = Index(tmp_path / "index", encoder)
    assert index.calibration == calibration
    few, many = index.search("red", k=2), index.search("red", k=12)
    assert [hit.probability for hit in few] == [hit.probability for hit in many[:2]]
    assert 0 < few[0].probability < 1
    assert index.search(image=tmp_path / "photos" / "0.jpg")[0].probability is None
    encoded = build_index(encoder, tmp_path / "photos", tmp_path / "index", progress=False)
    assert encoded.added == 0
    index.calibrate(replace(calibration, gallery_size=3))
    with pytest.warns(UserWarning, match="12 pictures.* 3 images.*too high"):
        Index(tmp_path / "index", encoder).search("red")
    save_picture(tmp_path / "photos" / "new.jpg", "blue", shade=50)
    build_index(encoder, tmp_path / "photos", tmp_path / "index", progress=False)
    assert Index(tmp_path / "index", encoder).calibration is not None
