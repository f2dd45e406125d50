"""A gallery on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from itmkit.checks import InputError
from itmkit.retrieval import Encoding, Gallery


def gallery() -> Gallery:
    tokens, mask = torch.randn(3, 4, 2), torch.rand(3, 4) > 0.5
    shared = torch.randn(9)
    return Gallery(
        Encoding(vector=shared[:6].view(3, 2), tokens=tokens.half(), mask=mask, own_mask=None),
        Encoding(vector=shared[1:9].view(2, 4)[:, ::2]),  # overlaps, and is not contiguous
        torch.tensor([2, 5, 9]),
        torch.tensor([9, 2]),
        torch.tensor([0, 7]),
        ["a b.jpg", "b.jpg", "ç/c.jpg"],
        ["a dog", "😀 “quoted”\n"],
    )


def test_round_trip(tmp_path: Path) -> None:
    own = gallery()
    own.save(tmp_path / "gallery.safetensors")
    for path in (tmp_path, str(tmp_path / "gallery.safetensors")):
        again = Gallery.load(path)
        assert (again.names, again.captions) == (own.names, own.captions)
        for name in ("image_ids", "text_image_ids", "text_ids"):
            assert getattr(again, name).equal(getattr(own, name))
        for side in ("images", "texts"):
            fields, expected = getattr(again, side).items(), getattr(own, side).items()
            assert fields.keys() == expected.keys()
            for name, value in expected.items():
                assert fields[name].dtype == value.dtype
                assert fields[name].equal(value)
        assert again.images.own_mask is None
        assert not hasattr(again.texts, "own_mask")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery.safetensors"]


def test_images_alone(tmp_path: Path) -> None:
    none = torch.empty(0, dtype=torch.int64)
    images, texts = Encoding(vector=torch.eye(2)), Encoding(vector=torch.empty(0, 0))
    Gallery(images, texts, torch.arange(2), none, none, captions=[]).save(tmp_path / "g")
    again = Gallery.load(tmp_path / "g")
    assert (len(again.texts), again.names, again.captions) == (0, None, [])


def test_names_and_captions_stay_with_their_rows() -> None:
    own = gallery()
    part = own.part(torch.tensor([2, 0]), torch.tensor([1]))
    assert (part.names, part.captions) == (["ç/c.jpg", "a b.jpg"], [gallery().captions[1]])
    both = Gallery.cat([own.part(torch.tensor([2]), torch.tensor([0])), own])
    assert both.names == own.names
    assert both.captions == own.captions[::-1]  # in the order of their images
    assert own.to("cpu").names == own.names
    nameless = Gallery(own.images, own.texts, own.image_ids, own.text_image_ids, own.text_ids)
    assert Gallery.cat([own, nameless]).names is None


def test_error(tmp_path: Path) -> None:
    own = gallery()
    with pytest.raises(FileNotFoundError, match=r"gallery.safetensors is missing; expected what"):
        Gallery.load(tmp_path)
    own.save(tmp_path / "g")
    content = (tmp_path / "g").read_bytes()
    (tmp_path / "g").write_bytes(content[:-9])
    with pytest.raises(InputError, match="g does not hold a gallery, or is cut short"):
        Gallery.load(tmp_path / "g")
    with pytest.raises(InputError, match="names has 1; expected 3, one a row"):
        Gallery(own.images, own.texts, own.image_ids, own.text_image_ids, own.text_ids, ["a"])
