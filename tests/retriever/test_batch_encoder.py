"""Vectors of pictures for the data frameworks of clusters."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import fs

import itmkit
from itmkit.checks import InputError
from itmkit.retriever import BatchEncoder, open_pictures, picture_names
from tests.retriever.conftest import DIM

WIDTH = DIM + 4  # with what the correction of hubs adds


def test_vectors_are_those_of_the_retriever(photos: Path, pixel_run: Path) -> None:
    names = ["1.jpg", "gone.jpg", "0.jpg"]
    batch = pa.table({"path": names, "year": [1, 2, 3]})
    encoder = BatchEncoder(pixel_run, photos / "images", device="cpu")
    found = encoder(batch)
    assert found.select(["path", "year"]).equals(batch)
    assert found.schema.field("vector").type == pa.list_(pa.float32(), WIDTH)
    retriever = itmkit.load(pixel_run, device="cpu")
    own = retriever.encode_images([photos / "images" / names[row] for row in (0, 2)])
    vectors = found["vector"].to_pylist()
    assert vectors[1] is None
    torch.testing.assert_close(torch.tensor([vectors[0], vectors[2]]), own.vector)
    assert found["error"].to_pylist()[::2] == [None, None]
    assert found["error"][1].as_py().startswith("gone.jpg: ")
    assert set(found["fingerprint"].to_pylist()) == {retriever.fingerprint}


def test_pickled_it_is_without_its_model(photos: Path, pixel_run: Path) -> None:
    encoder = BatchEncoder(pixel_run, photos / "images", device="cpu")
    batch = pa.table({"path": ["0.jpg"]})
    first = encoder(batch)
    sent = pickle.dumps(encoder)
    assert len(sent) < 1000
    assert pickle.loads(sent)(batch).equals(first)


def test_batch_without_a_readable_picture(photos: Path, pixel_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    found = BatchEncoder(pixel_run, tmp_path, device="cpu")(pa.table({"path": ["a.jpg"]}))
    assert found["vector"].null_count == 1
    assert found["vector"].type.list_size == WIDTH
    assert "a.jpg is not a readable image" in found["error"][0].as_py()


def test_empty_batches_and_missing_paths_have_the_same_columns(
    photos: Path, pixel_run: Path
) -> None:
    encoder = BatchEncoder(pixel_run, photos / "images", device="cpu")
    some = encoder(pa.table({"path": ["0.jpg", None]}))
    assert some["error"].to_pylist() == [None, "path is None; expected a string"]
    assert some["vector"].null_count == 1
    empty = encoder(pa.table({"path": pa.array([], pa.string())}))
    assert empty.schema.equals(some.schema)


def test_paths_stay_inside_the_folder(photos: Path, pixel_run: Path) -> None:
    encoder = BatchEncoder(pixel_run, photos / "images", device="cpu")
    found = encoder(pa.table({"path": ["../images/0.jpg", "/0.jpg", "0.jpg"]}))
    told = [
        f"path is {p!r}; expected one inside {photos}/images" for p in ("../images/0.jpg", "/0.jpg")
    ]
    assert found["error"].to_pylist() == [*told, None]


def test_columns_that_do_not_fit_are_refused(photos: Path, pixel_run: Path) -> None:
    encoder = BatchEncoder(pixel_run, photos / "images", device="cpu")
    with pytest.raises(InputError, match=r"batch has the columns \['file'\]; expected 'path'"):
        encoder(pa.table({"file": ["0.jpg"]}))
    with pytest.raises(InputError, match="batch has a column 'error', which is added"):
        encoder(pa.table({"path": ["0.jpg"], "error": [None]}))


def test_model_without_vectors_is_refused(
    photos: Path, pixel_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = BatchEncoder(pixel_run, photos / "images", device="cpu")
    monkeypatch.setattr(encoder.retriever.model, "score_fields", None)
    with pytest.raises(InputError, match="does not compare pictures and sentences by one vector"):
        encoder(pa.table({"path": ["0.jpg"]}))


def test_names_of_pictures(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/c.PNG", "note.txt", ".hidden/d.jpg", "a/.e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert picture_names(open_pictures(tmp_path)) == ["a/c.PNG", "b.jpg"]
    assert picture_names(open_pictures(f"file://{tmp_path}")) == ["a/c.PNG", "b.jpg"]
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    with pytest.warns(UserWarning, match="1 names that are not UTF-8 are left out"):
        assert picture_names(open_pictures(tmp_path)) == ["a/c.PNG", "b.jpg"]
    with pytest.raises(FileNotFoundError, match="root"):
        open_pictures(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no picture"):
        picture_names(fs.SubTreeFileSystem(str(tmp_path / "empty"), fs.LocalFileSystem()))


def test_bytes_of_a_file_are_a_picture(photos: Path, pixel_run: Path) -> None:
    retriever = itmkit.load(pixel_run, device="cpu")
    path = photos / "images/0.jpg"
    both = retriever.encode_images([path, path.read_bytes()]).vector.numpy()
    np.testing.assert_array_equal(both[0], both[1])
    with pytest.raises(ValueError, match=r"images\[0\] is not a readable image"):
        retriever.encode_images([b"no picture"])
    with pytest.raises(InputError, match="images is a bytes; expected a list"):
        retriever.encode_images(path.read_bytes())
