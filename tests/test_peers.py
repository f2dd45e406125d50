"""The baselines of ``python -m benchmarks.peers``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from pictures import save_picture
from text_models import save_text_model

from benchmarks.peers import __main__ as peers
from benchmarks.peers.generalised_pooling import GeneralisedPooling
from benchmarks.peers.systems import CCA, SCAN, PooledHeads, VSEInfinity
from itmkit.cli import main
from itmkit.data import Batch, Images, Texts
from itmkit.losses import InfoNCELoss
from itmkit.retrieval import Encoding, Gallery, evaluate
from itmkit.systems import Matcher
from itmkit.testing import check_matcher


def make_batch(count: int = 64, *, first: int = 0) -> Batch:
    """Images and captions that share three numbers, and are noise but for these."""
    generator = torch.Generator().manual_seed(7)
    mix = torch.randn(3, 11, generator=generator), torch.randn(3, 9, generator=generator)
    generator.manual_seed(first)
    shared = torch.randn(count, 1, 3, generator=generator)
    images = shared @ mix[0] + 0.1 * torch.randn(count, 4, 11, generator=generator)
    texts = shared @ mix[1] + 0.1 * torch.randn(count, 5, 9, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (count, 1), generator=generator)
    texts = texts * mask[..., None]
    rows = torch.arange(count)
    return Batch(Images(images), Texts(mask.long(), mask, texts), rows, rows, rows)


def gallery(matcher: Matcher, batch: Batch) -> Gallery:
    images: Encoding = matcher.eval().encode_image(batch.images)
    texts = matcher.encode_text(batch.texts)
    return Gallery(images, texts, batch.image_ids, batch.text_image_ids, batch.text_ids)


@pytest.mark.parametrize("kind", [PooledHeads, VSEInfinity, SCAN])
def test_peers_keep_the_laws_and_learn(kind: Callable[..., Matcher]) -> None:
    make = partial(kind, InfoNCELoss(0.1), 11, 9, dim=8, dropout=(0.0, 0.0))
    check_matcher(make, make_batch(5), processes=1)
    torch.manual_seed(0)
    matcher, batch = make(), make_batch()
    optimizer = torch.optim.Adam(matcher.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        matcher.loss(batch)["loss"].backward()
        optimizer.step()
    assert evaluate(matcher, gallery(matcher, make_batch(32, first=1)))["rsum"] > 350


def test_cca_finds_what_both_sides_share() -> None:
    cca = CCA(dim=3, ridge=(1e-3, 1e-3))
    cca.fit([make_batch(300), make_batch(300, first=3)])
    assert evaluate(cca, gallery(cca, make_batch(32, first=1)))["rsum"] > 500


def test_generalised_pooling_is_a_weighted_sum_of_sorted_values() -> None:
    torch.manual_seed(0)
    pool, tokens = GeneralisedPooling(), torch.randn(3, 6, 4)
    mask = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    found = pool(tokens, mask)
    for row, length in enumerate([6, 4, 1]):
        alone = tokens[row : row + 1, :length]
        torch.testing.assert_close(pool(alone)[0], found[row])
        most, least = alone[0].amax(0), alone[0].amin(0)
        assert ((found[row] <= most + 1e-6) & (found[row] >= least - 1e-6)).all()
    torch.nn.init.zeros_(pool.logit.weight)  # equal weights: the mean
    torch.testing.assert_close(pool(tokens), tokens.mean(1))


def test_command_prints_a_row_for_every_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    entries = []
    for row, colour in enumerate(["red", "green", "blue", "white"] * 3):
        name = f"{row}.jpg"
        save_picture(tmp_path / "photos" / name, colour, side=32)
        sentences = [{"raw": f"a {colour} square"}, {"raw": f"number {row}"}]
        entries.append(
            {"filename": name, "split": "val" if row > 7 else "train"} | {"sentences": sentences}
        )
    captions = tmp_path / "data.json"
    captions.write_text(json.dumps({"images": entries}))
    text_model, weights = save_text_model(tmp_path / "text"), tmp_path / "weights.pt"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    for split in ("train", "val"):
        options = {"annotations": captions, "images": tmp_path / "photos", "split": split}
        options |= {"output": tmp_path, "model": "test_resnet", "image_size": 32}
        options |= {"checkpoint": weights, "text_model": text_model}
        main(["extract", *(f"--{name}={value}" for name, value in options.items())])
    monkeypatch.setattr(peers, "BATCH_SIZES", dict.fromkeys(peers.BATCH_SIZES, 4))
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "--captions", str(captions), "--steps=2"])
    capsys.readouterr()
    peers.main()
    table = capsys.readouterr().out
    assert [line[:24].strip() for line in table.splitlines()[1:]] == ["CCA", *peers.peers()]
