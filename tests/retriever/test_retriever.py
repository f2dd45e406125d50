"""Pictures and sentences of every kind, right and wrong; what is saved comes back the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from clip_models import save_clip
from filelock import FileLock
from PIL import Image
from systems import BERT
from torch import Tensor

import itmkit
from itmkit import Retriever
from itmkit.checks import InputError
from itmkit.data import BadSampleError, Vocabulary, WordTokenizer
from itmkit.nn import BagOfWords, TimmGrid, TransformerText
from itmkit.retriever.queries import query_notes
from itmkit.systems import DAIM, MATE

TEXTS = ["a red dog", "a cat", "", "🦊 ☃ ωμέγα", "word " * 10_000, "\ud800 half a character"]


@pytest.fixture(scope="module")
def retriever(pixel_run: Path) -> Retriever:
    return itmkit.load(pixel_run, device="cpu")


@pytest.fixture
def photo() -> Image.Image:
    small = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((50, 40))


def floats(photo: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1) / 255


def test_kinds_of_one_picture_are_encoded_alike(
    retriever: Retriever, photo: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "photo.png")
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    opaque = photo.convert("RGBA")
    kinds = [tmp_path / "photo.png", str(tmp_path / "photo.png"), photo, np.asarray(photo)]
    kinds += [floats(photo), floats(photo).double(), opaque, Image.open(tmp_path / "turned.png")]
    vectors = retriever.encode_images(kinds).vector
    torch.testing.assert_close(vectors, vectors[:1].expand_as(vectors), atol=0, rtol=0)
    stack = torch.stack([floats(photo)] * 2)  # is a sequence of pictures too
    assert torch.equal(retriever.encode_images(stack).vector[1], vectors[0])


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_modes_of_pictures(
    mode: str, retriever: Retriever, photo: Image.Image, tmp_path: Path
) -> None:
    if mode == "I;16":
        grey = np.asarray(photo.convert("L")).astype(np.uint16)
        converted = Image.fromarray(grey * 257)
    else:
        converted = photo.convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    converted.save(path)
    found = retriever.encode_images([converted, path]).vector
    assert found.isfinite().all()
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    if mode == "I;16":  # is no brighter than with 8 bits
        eight = retriever.encode_images([photo.convert("L")]).vector[0]
        torch.testing.assert_close(found[0], eight, atol=1e-6, rtol=0)


WRONG: list[tuple[Callable[[Image.Image], Any], str]] = [
    (lambda photo: np.asarray(photo.convert("L")), r"images\[1\] is .* of the shape \(40, 50\);"),
    (lambda photo: np.asarray(photo) / 255, r"images\[1\] is .*float64.*; expected a path"),
    (lambda photo: floats(photo) * 255, r"images\[1\] has values from .*; expected \[0, 1\]"),
    (lambda photo: floats(photo) * torch.nan, r"images\[1\] has values from nan"),
    (lambda photo: floats(photo)[:1], r"images\[1\] is .* of the shape \(1, 40, 50\); expected"),
    (lambda photo: torch.zeros(3, 4, 4, dtype=torch.uint8), r"images\[1\] is a torch.uint8 tensor"),
    (lambda photo: None, r"images\[1\] is None; expected a path, the bytes of a file, a PIL image"),
    (lambda photo: "no/such.jpg", "no/such.jpg is missing, or not a file"),
    (
        lambda photo: photo.convert("F"),
        r"images\[1\] is not a readable image: it has floating",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_picture(
    make: Callable[[Image.Image], Any], message: str, retriever: Retriever, photo: Image.Image
) -> None:
    with pytest.raises(InputError, match=message):
        retriever.encode_images([photo, make(photo)])


def test_unreadable_pictures(retriever: Retriever, photo: Image.Image, tmp_path: Path) -> None:
    text, cut = tmp_path / "text.jpg", tmp_path / "cut.jpg"
    text.write_text("no picture")
    photo.resize((400, 400)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    for path in (text, cut):
        with pytest.raises(BadSampleError, match=f"{path.name} is not a readable image"):
            retriever.encode_images([path])
    with pytest.raises(InputError, match=r"images\[0\] is not a readable image"):
        retriever.encode_images([Image.open(cut)])


def test_what_is_no_list(retriever: Retriever, photo: Image.Image) -> None:
    for images in ("a.jpg", Path("a.jpg"), photo):
        with pytest.raises(InputError, match=r"images is .*; expected a list of pictures"):
            retriever.encode_images(images)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"texts is 'a dog'; expected a list of strings"):
        retriever.encode_texts("a dog")
    with pytest.raises(InputError, match=r"texts\[1\] is an int; expected a string"):
        retriever.encode_texts(["a dog", 3])  # type: ignore[list-item]
    for call in (retriever.encode_images, retriever.encode_texts):
        with pytest.raises(InputError, match="is empty; expected at least one"):
            call([])
        with pytest.raises(InputError, match="is None; expected a list"):
            call(None)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="batch_size is 0; expected 1 or more"):
            call(["a"], batch_size=0)


def test_sentences(retriever: Retriever, photo: Image.Image, tmp_path: Path) -> None:
    save_clip(tmp_path)
    for one in (retriever, itmkit.load(tmp_path)):
        together = one.scores([photo], TEXTS)
        assert together.isfinite().all()
        alone = torch.cat([one.scores([photo], [text]) for text in TEXTS], 1)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_batches_change_nothing_and_show_a_bar(
    retriever: Retriever, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [photo.rotate(angle) for angle in range(5)]
    whole = retriever.encode_images(iter(pictures))
    assert capsys.readouterr().err == ""
    parts = retriever.encode_images(pictures, batch_size=2, progress=True)
    assert "encode images: 100%" in capsys.readouterr().err
    torch.testing.assert_close(whole.vector, parts.vector, atol=1e-6, rtol=0)
    whole = retriever.encode_texts(TEXTS)
    parts = retriever.encode_texts(TEXTS, batch_size=2, progress=True)
    assert "encode texts: 100%" in capsys.readouterr().err
    torch.testing.assert_close(whole.vector, parts.vector, atol=1e-6, rtol=0)


def test_rank_in_both_directions(retriever: Retriever, photo: Image.Image, tmp_path: Path) -> None:
    save_clip(tmp_path)
    clip = itmkit.load(tmp_path, device="cpu")
    pictures = [photo.rotate(30 * row) for row in range(4)]
    images, texts = clip.encode_images(pictures), clip.encode_texts(["a red dog", "cat", "blue"])
    table = clip.scores(images, texts)
    scores, rows = clip.rank(images, texts, k=2)
    best = table.T.topk(2)
    assert rows.tolist() == best.indices.tolist()
    torch.testing.assert_close(scores, best.values)
    found = clip.rank(images, texts, k=9, query="image")
    assert found.rows.tolist() == table.argsort(1, descending=True).tolist()
    assert retriever.model.rerank_top_k == 2
    assert retriever.rank(pictures, ["a dog"]).rows.shape == (1, 4)  # with a second stage
    with pytest.raises(InputError, match="query is 'texts'; expected one of 'text', 'image'"):
        clip.rank(images, texts, query="texts")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="k is 0; expected 1 or more"):
        clip.rank(images, texts, k=0)


# ------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize("kind", ["pixel_run", "feature_run", "clip"])
def test_saved_folder_gives_the_same_without_anything_else(
    kind: str,
    photos: Path,
    photo: Image.Image,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "clip":
        save_clip(tmp_path / "model")
        first = itmkit.load(tmp_path / "model", device="cpu")
    else:
        first = itmkit.load(request.getfixturevalue(kind), device="cpu")
    first.save_pretrained(tmp_path / "saved")
    first.save_pretrained(tmp_path / "saved")  # once more, in its place
    assert len({path.stat().st_mode for path in (tmp_path / "saved").iterdir()}) == 1
    expected = first.scores([photo, photo.rotate(90)], TEXTS)
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in photos.glob("weights.pt"):
        path.rename(tmp_path / "weights.pt")
    try:
        second = Retriever.from_pretrained(moved)
    finally:
        (tmp_path / "weights.pt").rename(photos / "weights.pt")
    assert torch.equal(second.scores([photo, photo.rotate(90)], TEXTS), expected)
    assert second.fingerprint == first.fingerprint
    assert str(photos) not in (moved / "retriever.yaml").read_text()
    assert second.preprocessing == first.preprocessing
    names = {path.name for path in moved.iterdir()}
    assert {"retriever.yaml", "model.safetensors", "pretrained.json"} <= names
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_saved_folder_keeps_a_second_stage_that_was_fitted(pixel_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(pixel_run.resolve(), tmp_path / "run"))
    checkpoint = run / "checkpoints/best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["second_stage"] = {"top_k": 4, "weight": 0.35}
    options = {"rerank_top_k": 64, "rerank_weight": None, "rerank_standardised": True}
    content["model_config"]["init_args"] |= options
    torch.save(content, checkpoint)
    first = itmkit.load(run, device="cpu")
    first.save_pretrained(tmp_path / "saved")
    for model in (first.model, itmkit.load(tmp_path / "saved", device="cpu").model):
        numbers = model.rerank_top_k, model.rerank_weight, model.rerank_standardised
        assert numbers == (4, 0.35, True)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "retriever.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "text_encoder" in name))
    save_file(weights, folder / "model.safetensors")


def add_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"other.weight": torch.zeros(1)}, folder / "model.safetensors")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "newer": (lambda f: edit(f, format=2), "has the format 2; expected 1"),
    "entry": (lambda f: edit(f, other=1), "has wrong or missing entries: other"),
    "no yaml": (lambda f: (f / "retriever.yaml").write_text("a: [b"), "is not YAML"),
    "no mapping": (
        lambda f: (f / "retriever.yaml").write_text("- a"),
        "holds a list of str; exp",
    ),
    "cut": (cut, "is not a whole file of safetensors"),
    "missing weight": (
        drop_a_weight,
        r"does not fit MATE: text\S+ \(not in the file\); exp",
    ),
    "weights of another version": (
        lambda f: (drop_a_weight(f), edit(f, itmkit_version="0.0.1")),
        r"model.safetensors does not fit MATE: text\S+ \(.*written by itmkit 0\.0\.1 and this is",
    ),
    "more weights": (add_a_weight, "has 'other.weight'; expected no more"),
    "tokenizer": (lambda f: edit(f, tokenizer={"a": 1}), "has the tokenizer {'a': 1}; expected"),
    "preprocessing": (
        lambda f: edit(f, preprocessing={"size": 0}),
        "preprocessing in .*size is 0",
    ),
    "dtype": (lambda f: edit(f, feature_dtype="int8"), "feature_dtype is 'int8'; expected one of"),
    "no class": (lambda f: edit(f, model={"a": 1}), "expected a class_path with its init_args"),
    "code": (
        lambda f: edit(f, model={"class_path": "os.system", "init_args": {}}),
        r"names the class 'os.system'; expected one of itmkit or torch, or trust=\['os'\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_folder(fault: str, retriever: Retriever, tmp_path: Path) -> None:
    retriever.save_pretrained(tmp_path / "saved")
    change, message = FAULTS[fault]
    change(tmp_path / "saved")
    with pytest.raises(InputError, match=message) as caught:
        itmkit.load(tmp_path / "saved")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pretrained.json", "vocabulary.json"])
def test_missing_file(name: str, retriever: Retriever, tmp_path: Path) -> None:
    retriever.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        Retriever.from_pretrained(tmp_path / "saved")


def test_two_that_save_into_one_folder_are_refused(retriever: Retriever, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".saved.lock"), pytest.raises(InputError, match="by another process"):
        retriever.save_pretrained(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == [".saved.lock"]


def test_saved_into_an_empty_folder_through_a_link(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"here', the working directory; expected a new folder"):
        retriever.save_pretrained(".")
    monkeypatch.chdir(tmp_path)
    retriever.save_pretrained("here")
    (tmp_path / "link").symlink_to("here")
    (tmp_path / ".here.old").mkdir()  # of a process that was killed
    (tmp_path / ".here.old" / "file").write_text("")
    retriever.save_pretrained(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link"]
    assert (tmp_path / "link").is_symlink()
    assert len(Retriever.from_pretrained(tmp_path / "here").tokenizer) == len(retriever.tokenizer)


def test_what_is_not_saved(retriever: Retriever, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"folder is .*, which holds other files; expected a new"):
        retriever.save_pretrained(tmp_path)
    words = Vocabulary.build(["a red dog"], min_count=1)
    grid = TimmGrid("test_resnet", 8, image_size=32)
    model = DAIM(grid, BagOfWords(len(words), 8))
    built = Retriever(model, WordTokenizer(words), retriever.preprocessing)
    with pytest.raises(InputError, match="model is a DAIM that was built in code; expected one"):
        built.save_pretrained(tmp_path / "built")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_retrievers_share_a_tokenizer_of_the_caller(pixel_run: Path) -> None:
    retriever = itmkit.load(pixel_run, device="cpu")
    words = retriever.tokenizer
    assert isinstance(words, WordTokenizer)
    long = WordTokenizer(words.vocabulary, max_length=40)
    text = TransformerText(
        config={**BERT, "vocab_size": len(long), "max_position_embeddings": 8}, dim=8
    )
    short = MATE(TimmGrid("test_resnet", 8, image_size=32), text)
    cut = Retriever(short, long, retriever.preprocessing).tokenizer
    assert (cut.max_length, len(cut.encode("dog " * 50).ids)) == (8, 8)
    assert (long.max_length, len(long.encode("dog " * 50).ids)) == (40, 40)


def test_notes_on_a_query() -> None:
    words = WordTokenizer(Vocabulary.build(["a red dog"], min_count=1), max_length=6)
    assert query_notes(words, "A red dog a") == []  # six tokens with start and end
    assert query_notes(words, "a красный dog") == [
        "1 of 3 words of the query are not known: 'красный'"
    ]
    assert query_notes(words, "a red dog runs away") == [
        "1 of 4 words of the query are not known: 'runs'",
        "the query is cut to the 6 tokens that the model takes",
    ]
