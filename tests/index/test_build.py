"""Making an index, bringing it up to date, joining shards; and what can go wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from itmkit.checks import InputError
from itmkit.data.photo import read_photo
from itmkit.index import (
    Calibration,
    Index,
    build,
    build_index,
    items,
    merge_indexes,
    pictures,
    store,
)
from itmkit.index.columns import picture_columns
from itmkit.index.items import file_hash
from itmkit.retrieval import Encoding
from tests.support.pictures import ColourEncoder, save_picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for row, colour in enumerate(("red", "green", "blue", "red")):
        save_picture(folder / f"{row}-{colour}.jpg", colour, shade=row)
    save_picture(folder / "trip" / "white.jpg", "white")
    return folder


def content(folder: Path) -> dict[str, object]:
    found = store.read(folder)
    arrays = {name: array.tobytes() for name, array in found.fields.items()}
    return {"items": found.items.to_pylist(), **arrays}


def test_smoke(photos: Path, tmp_path: Path) -> None:
    encoder = ColourEncoder()
    update = build_index(encoder, photos, tmp_path / "index", progress=False)
    assert (update.count, update.added, encoder.encoded) == (5, 5, 5)
    index = Index(tmp_path / "index", encoder)
    assert index.items["path"].to_pylist()[-1] == "trip/white.jpg"
    assert len(index) == 5
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["count"] == 5
    assert manifest["format_version"] == 1
    assert not (tmp_path / "index" / "partial").exists()


def test_vectors_are_those_of_the_encoder(photos: Path, tmp_path: Path) -> None:
    encoder = ColourEncoder()
    build_index(encoder, photos, tmp_path / "index", batch_size=2, chunk_size=2, progress=False)
    found = store.read(tmp_path / "index")
    own = encoder.encode_images([photos / path for path in found.items["path"].to_pylist()])
    np.testing.assert_allclose(found.fields["vector"], own.vector, rtol=1e-6)
    np.testing.assert_allclose(found.fields["tokens"], own.tokens, rtol=1e-6)


@pytest.mark.parametrize("field", ["vector", "tokens"])
def test_half_precision(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(store, "_BLOCK", 2)
    for dtype in ("float32", "float16"):
        build_index(ColourEncoder(), photos, tmp_path / dtype, dtype=dtype, progress=False)
    whole, half = (store.read(tmp_path / dtype).fields[field] for dtype in ("float32", "float16"))
    assert (whole.dtype, half.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(half, whole.astype(np.float16))


def test_error_of_encodings_that_are_not_finite(photos: Path, tmp_path: Path) -> None:
    class Large(ColourEncoder):
        def encode_pixels(self, pixels: Tensor) -> Encoding:
            return Encoding(vector=super().encode_pixels(pixels).vector * self.scale)

        scale = 1e6

    with pytest.raises(InputError, match="vector of a picture is not finite in float16; expected"):
        build_index(Large(), photos, tmp_path / "half", dtype="float16", progress=False)
    build_index(Large(), photos, tmp_path / "whole", progress=False)
    Large.scale = float("nan")
    with pytest.raises(InputError, match="vector of a picture is not finite in float32; expected"):
        build_index(Large(), photos, tmp_path / "none", progress=False)


def test_nothing_is_encoded_again(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "index"
    build_index(ColourEncoder(), photos, output, progress=False)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    again = ColourEncoder()
    update = build_index(again, photos, output, progress=False)
    assert again.encoded == 0
    assert str(update) == "5 pictures"
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}


def test_add_change_move_remove_touch(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "index"
    build_index(ColourEncoder(), photos, output, progress=False)
    save_picture(photos / "new.jpg", "blue", shade=9)
    save_picture(photos / "0-red.jpg", "green", shade=8)
    (photos / "1-green.jpg").rename(photos / "trip" / "renamed.jpg")
    (photos / "2-blue.jpg").unlink()
    os.utime(photos / "3-red.jpg", (1, 1))
    encoder = ColourEncoder()
    update = build_index(encoder, photos, output, progress=False)
    assert (update.added, update.changed, update.moved, update.removed) == (1, 1, 1, 1)
    assert encoder.encoded == 2
    build_index(ColourEncoder(), photos, tmp_path / "fresh", progress=False)
    assert content(output) == content(tmp_path / "fresh")


def test_equal_files_are_encoded_once_and_reported(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "0-red.jpg", photos / "copy.jpg")
    encoder = ColourEncoder()
    update = build_index(encoder, photos, tmp_path / "index", progress=False)
    assert update.duplicates == [["0-red.jpg", "copy.jpg"]]
    assert "1 copies of others (such as 0-red.jpg = copy.jpg)" in str(update)
    assert (update.count, encoder.encoded) == (6, 5)


def test_unreadable_pictures_are_listed_and_not_tried_again(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    shutil.copy(photos / "broken.jpg", photos / "broken-copy.jpg")
    for _ in range(2):
        update = build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
        assert [one.path for one in update.skipped] == ["broken-copy.jpg", "broken.jpg"]
    index = Index(tmp_path / "index", ColourEncoder())
    assert "not a readable image" in index.skipped["broken-copy.jpg"]
    save_picture(photos / "broken.jpg", "white", shade=3)
    update = build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
    assert update.added == 1
    assert len(update.skipped) == 1


def test_skipped_pictures_are_tried_again_with_what_may_read_them(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_picture(photos / "large.jpg", side=40)
    (photos / "broken.jpg").write_bytes(b"no picture")

    def skipped(**options: int) -> list[str]:
        output = tmp_path / "index"
        update = build_index(ColourEncoder(), photos, output, progress=False, **options)
        return [one.path for one in update.skipped]

    read: list[str] = []
    monkeypatch.setattr(
        pictures, "read_photo", lambda path, **k: read.append(path.name) or read_photo(path, **k)
    )
    assert skipped(max_pixels=1000) == ["broken.jpg", "large.jpg"]
    read.clear()
    assert skipped(max_pixels=1000) == ["broken.jpg", "large.jpg"]
    assert read == []
    assert skipped(max_pixels=2000) == ["broken.jpg"]
    assert sorted(read) == ["broken.jpg", "large.jpg"]
    read.clear()
    monkeypatch.setattr(build, "decoded_formats", lambda: ["JPEG", "NEW"])
    assert skipped(max_pixels=2000) == ["broken.jpg"]
    assert read == ["broken.jpg"]


def test_a_file_that_could_not_be_opened_is_tried_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> str:
        if path.name == "0-red.jpg":
            raise PermissionError(errno.EACCES, "Permission denied")
        return file_hash(path)

    with monkeypatch.context() as patched:
        patched.setattr(items, "file_hash", refused)
        update = build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
        assert [one.reason for one in update.skipped] == [f"{photos}/0-red.jpg: Permission denied"]
    update = build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
    assert (update.added, update.skipped) == (1, [])


def test_shards_make_what_one_process_makes(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    build_index(ColourEncoder(), photos, tmp_path / "whole", progress=False)
    parts = [tmp_path / f"part{i}" for i in (1, 2, 3)]
    for i, part in enumerate(parts, 1):
        build_index(ColourEncoder(), photos, part, shard=(i, 3), progress=False)
    update = merge_indexes(parts, tmp_path / "merged")
    assert update.count == 5
    assert content(tmp_path / "merged") == content(tmp_path / "whole")
    assert store.read(tmp_path / "merged").manifest == store.read(tmp_path / "whole").manifest
    with pytest.raises(InputError, match=r"'0-red.jpg' is in several of the indexes"):
        merge_indexes([parts[0], parts[0]], tmp_path / "twice")


def test_shard_that_is_missing(photos: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"part{i}" for i in (1, 2, 3)]
    for i, part in enumerate(parts, 1):
        build_index(ColourEncoder(), photos, part, shard=(i, 3), progress=False)
    with pytest.raises(InputError, match=r"part3 \(3/3\); expected all parts 1/k to k/k"):
        merge_indexes([parts[0], parts[2]], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_merged_into_an_index_of_other_pictures_or_another_model(
    photos: Path, tmp_path: Path
) -> None:
    build_index(ColourEncoder(), photos, tmp_path / "part", progress=False)
    save_picture(tmp_path / "mine" / "a.jpg")
    build_index(ColourEncoder(), tmp_path / "mine", tmp_path / "other", progress=False)
    build_index(ColourEncoder("x"), photos, tmp_path / "model", progress=False)
    for output, what in (("other", "root"), ("model", "fingerprint")):
        before = content(tmp_path / output)
        with pytest.raises(InputError, match=rf"/{output} has the {what} .*; expected"):
            merge_indexes([tmp_path / "part"], tmp_path / output)
        assert content(tmp_path / output) == before
    shutil.rmtree(tmp_path / "mine")
    assert merge_indexes([tmp_path / "part"], tmp_path / "other").count == 5
    assert store.read(tmp_path / "other").manifest["generation"] == 2


def test_shards_keep_probabilities_and_columns(photos: Path, tmp_path: Path) -> None:
    scores = torch.rand(200, 12, generator=torch.Generator().manual_seed(0))
    calibration = Calibration.fit(scores, scores > 0.8)
    parts = [tmp_path / f"part{i}" for i in (1, 2)]
    values: dict[str, float] = {"0-red.jpg": 1, "1-green.jpg": 0.5}  # integers in the first part
    for i, part in enumerate(parts, 1):
        columns = {"share": values}
        build_index(ColourEncoder(), photos, part, shard=(i, 2), columns=columns, progress=False)
        Index(part, ColourEncoder()).calibrate(calibration)
    merge_indexes(parts, tmp_path / "all")
    index = Index(tmp_path / "all", ColourEncoder())
    assert index.calibration == calibration
    assert index.items["share"].to_pylist() == [1, 0.5, None, None, None]


def test_columns_stay_without_a_table(photos: Path, tmp_path: Path) -> None:
    build_index(
        ColourEncoder(), photos, tmp_path / "i", columns={"a": {"0-red.jpg": 1}}, progress=False
    )
    save_picture(photos / "new.jpg", "blue", shade=9)
    build_index(ColourEncoder(), photos, tmp_path / "i", progress=False)
    assert store.read(tmp_path / "i").items["a"].to_pylist() == [1, *[None] * 5]
    build_index(ColourEncoder(), photos, tmp_path / "i", columns={}, progress=False)
    assert "a" not in store.read(tmp_path / "i").items.column_names


def test_opened_while_a_new_one_takes_its_place(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(ColourEncoder(), photos, tmp_path / "i", progress=False)
    save_picture(photos / "new.jpg", "blue", shade=9)
    whole, updates = store._open, []

    def slow(path: Path, rows: int) -> store.Array:
        if not updates:
            monkeypatch.setattr(store, "_open", whole)
            updates.append(build_index(ColourEncoder(), photos, tmp_path / "i", progress=False))
        return whole(path, rows)

    monkeypatch.setattr(store, "_open", slow)
    assert len(Index(tmp_path / "i", ColourEncoder())) == 6
    assert updates


def test_table_is_opened_once_and_by_arrow(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a Python file, a thread of Arrow may drop an object as the interpreter ends: it aborts."""
    build_index(ColourEncoder(), photos, tmp_path / "i", progress=False)
    whole, sources = pq.ParquetFile, []

    def noted(source: object) -> pq.ParquetFile:
        sources.append(type(source))  # no path, which it would open by its name
        return whole(source)

    monkeypatch.setattr(pq, "ParquetFile", noted)
    monkeypatch.setattr(pq, "read_table", None)  # opens it twice, by its name
    store.read(tmp_path / "i")
    assert sources == [pa.OSFile]


def test_own_columns(photos: Path, tmp_path: Path) -> None:
    columns = {"year": {"0-red.jpg": 2018, "2-blue.jpg": 2021}}
    build_index(ColourEncoder(), photos, tmp_path / "index", columns=columns, progress=False)
    years = store.read(tmp_path / "index").items["year"].to_pylist()
    assert years == [2018, None, 2021, None, None]
    with pytest.raises(InputError, match="column 'hash' is one of path, size, mtime, hash"):
        build_index(ColourEncoder(), photos, tmp_path / "i", columns={"hash": {}}, progress=False)


KILLED = """
import os, signal, sys
from itmkit.index import build_index
from itmkit.index import store
from tests.support.pictures import ColourEncoder
photos, output, place = sys.argv[1:]
if place == "encode":
    class Encoder(ColourEncoder):
        def encode_pixels(self, pixels):
            if self.encoded >= 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode_pixels(pixels)
    encoder = Encoder()
else:
    encoder = ColourEncoder()
    whole = store.atomic_write
    def atomic_write(target):
        if "partial" not in str(target) and place in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(target)
    store.atomic_write = atomic_write
build_index(encoder, photos, output, batch_size=1, chunk_size=2, progress=False)
"""


@pytest.mark.parametrize(
    ("place", "before"),
    [("encode", False), ("encode", True), ("vector-", True), ("items.parquet", True)],
)
def test_a_kill_loses_nothing(photos: Path, tmp_path: Path, place: str, before: bool) -> None:
    output = tmp_path / "index"
    if before:
        build_index(ColourEncoder(), photos, output, progress=False)
        for row in range(5):
            save_picture(photos / f"later-{row}.jpg", "green", shade=20 + row)
        old = content(output)
    command = [sys.executable, "-c", KILLED, str(photos), str(output), place]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    if before:
        assert content(output) == old
    else:
        with pytest.raises(FileNotFoundError, match="stopped before the end; run it again"):
            Index(output, ColourEncoder())
    encoder = ColourEncoder()
    build_index(encoder, photos, output, progress=False)
    assert encoder.encoded == (3 if place == "encode" else 0)
    build_index(ColourEncoder(), photos, tmp_path / "fresh", progress=False)
    assert content(output) == content(tmp_path / "fresh")


def test_interrupted(photos: Path, tmp_path: Path) -> None:
    class Interrupted(ColourEncoder):
        def encode_pixels(self, pixels: Tensor) -> Encoding:
            if self.encoded == 3:
                raise KeyboardInterrupt
            return super().encode_pixels(pixels)

    with pytest.raises(KeyboardInterrupt):
        build_index(Interrupted(), photos, tmp_path / "i", batch_size=1, progress=False)
    encoder = ColourEncoder()
    build_index(encoder, photos, tmp_path / "i", progress=False)
    assert encoder.encoded == 2
    build_index(ColourEncoder(), photos, tmp_path / "fresh", progress=False)
    assert content(tmp_path / "i") == content(tmp_path / "fresh")


class TestErrors:
    def test_no_folder_or_no_picture(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
            build_index(ColourEncoder(), tmp_path / "nowhere", tmp_path / "index")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="has no photo"):
            build_index(ColourEncoder(), tmp_path / "empty", tmp_path / "index")
        assert not (tmp_path / "index").exists()

    def test_no_readable_picture(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.jpg").write_bytes(b"")
        with pytest.raises(InputError, match=r"no picture that can be read; the first: .*a\.jpg"):
            build_index(ColourEncoder(), tmp_path / "photos", tmp_path / "index", progress=False)
        assert not (tmp_path / "index").exists()

    def test_link_out(self, photos: Path, tmp_path: Path) -> None:
        outside = save_picture(tmp_path / "outside.jpg")
        (photos / "link.jpg").symlink_to(outside)
        with pytest.raises(InputError, match=r"link\.jpg is a link to .*outside\.jpg"):
            build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
        update = build_index(
            ColourEncoder(), photos, tmp_path / "index", follow_links=True, progress=False
        )
        assert update.count == 6

    @pytest.mark.parametrize("most", [255, 178_956_971])
    def test_max_pixels(self, photos: Path, tmp_path: Path, most: int) -> None:
        with pytest.raises(InputError, match=f"max_pixels is {most}; expected"):
            build_index(ColourEncoder(), photos, tmp_path / "i", max_pixels=most, progress=False)

    @pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing", "link to itself"])
    def test_what_is_no_file_is_skipped(self, photos: Path, tmp_path: Path, kind: str) -> None:
        odd = photos / "odd.jpg"
        if kind == "pipe":
            os.mkfifo(odd)
        elif kind == "folder":
            odd.mkdir()
        else:
            odd.symlink_to("odd.jpg" if "itself" in kind else "nothing.jpg")
        for _ in range(2):
            update = build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
            assert update.count == 5
            told = [one.reason for one in update.skipped]
            expected = [] if kind == "folder" else [f"{odd} is missing, or not a file"]
            assert told == expected

    def test_files_of_others(self, photos: Path, tmp_path: Path) -> None:
        output = tmp_path / "mine"
        (output / "partial").mkdir(parents=True)
        (output / "partial" / "notes.txt").write_text("mine")
        np.save(output / "val-ims.npy", np.ones(3))
        with pytest.raises(InputError, match=r"mine', which holds other files, such as 'val-ims"):
            build_index(ColourEncoder(), photos, output, progress=False)
        assert sorted(path.name for path in output.rglob("*.*")) == ["notes.txt", "val-ims.npy"]
        with pytest.raises(InputError, match=r"val-ims\.npy', a file; expected a folder"):
            build_index(ColourEncoder(), photos, output / "val-ims.npy", progress=False)
        build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
        shutil.copy(output / "val-ims.npy", tmp_path / "index")  # put there later
        save_picture(photos / "new.jpg", "blue", shade=9)
        build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
        arrays = sorted(path.name for path in (tmp_path / "index").glob("*.npy"))
        assert arrays == ["tokens-0002.npy", "val-ims.npy", "vector-0002.npy"]

    def test_other_folder(self, photos: Path, tmp_path: Path) -> None:
        index = tmp_path / "index"
        build_index(ColourEncoder(), photos, index, progress=False)
        save_picture(tmp_path / "others" / "a.jpg")
        with pytest.raises(InputError, match=r"is the index of .*photos; expected that folder"):
            build_index(ColourEncoder(), tmp_path / "others", index, progress=False)
        photos.rename(tmp_path / "moved")
        with pytest.warns(UserWarning, match="photos, the pictures of .*, is not there"):
            Index(index, ColourEncoder())
        encoder = ColourEncoder()
        build_index(encoder, tmp_path / "moved", index, progress=False)
        assert encoder.encoded == 0
        assert Index(index, encoder).search("red", 1)[0].path.is_file()

    @pytest.mark.parametrize("fault", [RuntimeError("no memory"), OSError(28, "No space left")])
    def test_nothing_stays_of_a_first_try(
        self, photos: Path, tmp_path: Path, fault: Exception
    ) -> None:
        class Broken(ColourEncoder):
            def encode_pixels(self, pixels: Tensor) -> Encoding:
                raise fault

        with pytest.raises(type(fault)):
            build_index(Broken(), photos, tmp_path / "index", progress=False)
        assert not (tmp_path / "index").exists()

    def test_number_of_processes(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="num_workers is -1; expected 0 or more"):
            build_index(ColourEncoder(), photos, tmp_path / "index", num_workers=-1)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"Hash": {"0-red.jpg": 1}}, "column 'Hash' is one of path, size"),
            ({"a": {"0-red.jpg": 1}, "A": {}}, "columns 'a' and 'A' differ in case alone"),
            ({"a": {"0-red.jpg": 10**30}}, "column 'a' has .*64 bits"),
            ({"a": {"0-red.jpg": "\udce9"}}, "column 'a' has .*UTF-8"),
            ({"a": {"0-red.jpg": 1, "2-blue.jpg": "b"}}, "column 'a' has values of several types"),
            ({"a": {"zero.jpg": 1}}, "pictures such as 'zero.jpg', and none of these is there"),
        ],
    )
    def test_columns(
        self, photos: Path, tmp_path: Path, columns: dict[str, dict[str, object]], message: str
    ) -> None:
        encoder = ColourEncoder()
        with pytest.raises(InputError, match=message):
            build_index(encoder, photos, tmp_path / "index", columns=columns, progress=False)
        assert encoder.encoded == 0
        assert not (tmp_path / "index").exists()

    def test_links_in_a_circle(self, photos: Path, tmp_path: Path) -> None:
        (photos / "trip" / "up").symlink_to("..")
        update = build_index(
            ColourEncoder(), photos, tmp_path / "index", follow_links=True, progress=False
        )
        assert update.count == 5

    def test_second_writer(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "index").mkdir()
        with (
            FileLock(tmp_path / "index" / ".lock"),
            pytest.raises(InputError, match="is being written by another process"),
        ):
            build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)

    def test_other_model(self, photos: Path, tmp_path: Path) -> None:
        build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
        with pytest.raises(InputError, match=r"made with another model \('colours'\)"):
            build_index(ColourEncoder("other"), photos, tmp_path / "index", progress=False)
        with pytest.raises(InputError, match="index the pictures again"):
            Index(tmp_path / "index", ColourEncoder("other"))
        with pytest.raises(InputError, match=r"made with another dtype \('float32'\)"):
            build_index(
                ColourEncoder(), photos, tmp_path / "index", dtype="float16", progress=False
            )

    def test_work_of_another_model_is_not_gone_on_with(self, photos: Path, tmp_path: Path) -> None:
        class Stopped(ColourEncoder):
            def encode_pixels(self, pixels: Tensor) -> Encoding:
                if self.encoded >= 2:
                    raise KeyboardInterrupt
                return super().encode_pixels(pixels)

        output = tmp_path / "index"
        with pytest.raises(KeyboardInterrupt):
            build_index(Stopped(), photos, output, batch_size=1, progress=False)
        with pytest.raises(InputError, match=r"partial was made with another model \('colours'\)"):
            build_index(ColourEncoder("other"), photos, output, progress=False)
        rest = ColourEncoder()
        build_index(rest, photos, output, progress=False)
        assert rest.encoded == 3

    def test_damaged(self, photos: Path, tmp_path: Path) -> None:
        output = tmp_path / "index"
        build_index(ColourEncoder(), photos, output, progress=False)
        vectors = output / "vector-0001.npy"
        whole = vectors.read_bytes()
        vectors.write_bytes(whole[:-5])
        with pytest.raises(
            InputError,
            match=r"vector-0001\.npy is not readable, .*; remove this index",
        ):
            Index(output, ColourEncoder())
        np.save(vectors, np.zeros((6, 3), np.float32))
        with pytest.raises(InputError, match=r"vector-0001\.npy has 6 rows; expected 5"):
            Index(output, ColourEncoder())
        vectors.unlink()
        with pytest.raises(FileNotFoundError, match=r"vector-0001\.npy is missing"):
            Index(output, ColourEncoder())
        (output / "items.parquet").write_bytes(b"PAR1")
        with pytest.raises(InputError, match=r"items\.parquet is not the table of an index"):
            Index(output, ColourEncoder())

    def test_damaged_calibration(self, photos: Path, tmp_path: Path) -> None:
        build_index(ColourEncoder(), photos, tmp_path / "i", progress=False)
        (tmp_path / "i" / "calibration.json").write_text("{}")
        with pytest.raises(InputError, match=r"calibration\.json has wrong or missing entries"):
            Index(tmp_path / "i", ColourEncoder())
        (tmp_path / "i" / "calibration.json").write_text("{")
        with pytest.raises(InputError, match=r"is not JSON: .*; remove this file: itmkit index"):
            Index(tmp_path / "i", ColourEncoder())

    def test_newer_version(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "FORMAT_VERSION", 2)
        build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
        monkeypatch.undo()
        with pytest.raises(InputError, match="format version 2; expected at most 1"):
            Index(tmp_path / "index", ColourEncoder())

    def test_full_disk(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
        old = content(tmp_path / "index")
        save_picture(photos / "new.jpg", "blue", shade=9)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device", "items.parquet")

        monkeypatch.setattr("pyarrow.parquet.write_table", full)
        for output in ("index", "new"):
            with pytest.raises(OSError, match="No space left"):
                build_index(ColourEncoder(), photos, tmp_path / output, progress=False)
        assert content(tmp_path / "index") == old
        assert not (tmp_path / "new").exists()

    def test_part_in_place_of_another(self, photos: Path, tmp_path: Path) -> None:
        index = tmp_path / "index"
        build_index(ColourEncoder(), photos, index, shard=(1, 2), progress=False)
        with pytest.raises(InputError, match="is the index of part 1/2; expected that shard, or"):
            build_index(ColourEncoder(), photos, index, shard=(2, 2), progress=False)
        whole = build_index(ColourEncoder(), photos, index, progress=False)
        assert (whole.count, whole.removed) == (5, 0)
        with pytest.raises(InputError, match="is the index of part 1/1"):
            build_index(ColourEncoder(), photos, index, shard=(1, 2), progress=False)

    @pytest.mark.parametrize("shard", [(0, 2), (3, 2), (6, 6)])
    def test_shard(self, photos: Path, tmp_path: Path, shard: tuple[int, int]) -> None:
        with pytest.raises(InputError, match=r"shard is \d/\d.*; expected (i/k|at most 5 parts)"):
            build_index(ColourEncoder(), photos, tmp_path / "index", shard=shard)

    def test_encoder_fault_keeps_its_traceback(self, photos: Path, tmp_path: Path) -> None:
        class Broken(ColourEncoder):
            def encode_pixels(self, pixels: Tensor) -> Encoding:
                return Encoding(vector=torch.ones(1)[pixels.long().max() + 7])

        with pytest.raises(IndexError):
            build_index(Broken(), photos, tmp_path / "index", progress=False)


def test_names_that_an_index_cannot_hold_are_skipped(photos: Path, tmp_path: Path) -> None:
    folder = os.fsencode(photos)
    for name in (b"caf\xe9.jpg", b"two\nlines.jpg", b"a\\b.jpg", b"C:d.jpg"):
        shutil.copy(photos / "0-red.jpg", os.fsdecode(folder + b"/" + name))
    (photos / os.fsdecode(b"\xff")).mkdir()
    save_picture(photos / os.fsdecode(b"\xff") / "a.jpg")
    for _ in range(2):
        update = build_index(ColourEncoder(), photos, tmp_path / "index", progress=False)
        assert update.count == 7
        assert [one.path for one in update.skipped] == [
            r"\xff/a.jpg",
            r"caf\xe9.jpg",
            r"two\nlines.jpg",
        ]
        assert "has a path that is not one line of UTF-8; rename it" in str(update)
    shards = [tmp_path / "1", tmp_path / "2"]
    for part, shard in enumerate(shards, 1):
        build_index(ColourEncoder(), photos, shard, shard=(part, 2), progress=False)
    assert merge_indexes(shards, tmp_path / "all").skipped == update.skipped
    assert store.read(tmp_path / "index").manifest["generation"] == 1
    (photos / "odd").mkdir()
    shutil.copy(photos / "0-red.jpg", photos / "odd" / "two\nlines.jpg")
    for root in (photos / os.fsdecode(b"\xff"), photos / "odd"):
        with pytest.raises(InputError, match="no photo whose path is one line of UTF-8"):
            build_index(ColourEncoder(), root, tmp_path / "i", progress=False)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["2018", "", "-3"], [2018, None, -3]),
        (["0.5", "1", ".5e1"], [0.5, 1.0, 5.0]),
        (["1_000", "2", "3"], ["1_000", "2", "3"]),
        (["nan", "inf", "1.5"], ["nan", "inf", "1.5"]),
        (["٣", "1", "2"], ["٣", "1", "2"]),
        (["1e400", "1", "2"], ["1e400", "1", "2"]),
        (["12345678901234567890", "1", ""], ["12345678901234567890", "1", None]),
    ],
)
def test_numbers_of_a_table(tmp_path: Path, cells: list[str], expected: list[object]) -> None:
    table = tmp_path / "captions.csv"
    table.write_text("image,x\n" + "".join(f"{row}.jpg,{cell}\n" for row, cell in enumerate(cells)))
    assert list(picture_columns(table)["x"].values()) == expected


def test_columns_of_names_that_are_written_otherwise(photos: Path, tmp_path: Path) -> None:
    both = [unicodedata.normalize(form, "été.jpg") for form in ("NFC", "NFD")]
    save_picture(photos / both[1])
    columns = {"year": {both[0]: 2018, "./0-red.jpg": 2019, "trip//white.jpg": 2020}}

    def years() -> dict[str, int | None]:
        table = store.read(tmp_path / "i").items
        return dict(zip(table["path"].to_pylist(), table["year"].to_pylist(), strict=True))

    build_index(ColourEncoder(), photos, tmp_path / "i", columns=columns, progress=False)
    expected = {both[1]: 2018, "0-red.jpg": 2019, "trip/white.jpg": 2020}
    assert {name: year for name, year in years().items() if year} == expected
    save_picture(photos / both[0], "blue")  # both on a file system that tells them apart
    columns["year"][both[1]] = 2021
    build_index(ColourEncoder(), photos, tmp_path / "i", columns=columns, progress=False)
    assert {name: year for name, year in years().items() if year} == {
        **expected,
        both[0]: 2018,
        both[1]: 2021,
    }


def test_columns_of_a_table(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    table.write_text(
        "image,year,share,caption\n0-red.jpg,2018,0.5,a red one\n0-red.jpg,2018,0.5,again\n"
        "2-blue.jpg,2020,1,blue\ntrip/white.jpg,,,\n"
    )
    columns = picture_columns(table)
    assert columns["year"] == {"0-red.jpg": 2018, "2-blue.jpg": 2020, "trip/white.jpg": None}
    assert columns["share"]["2-blue.jpg"] == 1.0
    assert columns["caption"]["0-red.jpg"] == "a red one"
    build_index(ColourEncoder(), photos, tmp_path / "i", columns=columns, progress=False)
    index = Index(tmp_path / "i", ColourEncoder())
    assert [h.path.name for h in index.search("blue", where="year >= 2018 and share > 0.5")] == [
        "2-blue.jpg"
    ]
