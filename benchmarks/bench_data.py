"""What lies before a training step: features, photos and captions, read, tokenised and batched.

Photos are made here; ITMKIT_BENCH_PHOTOS names a folder of JPEGs to be read instead.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from benchmarks.timing import Comparison, interleave
from itmkit.data import (
    ImageTextData,
    KarpathyDataset,
    PackedPhotos,
    PhotoFolder,
    Photos,
    PictureFile,
    PrecompDataset,
    Preprocessing,
    Texts,
    Tokenizer,
    TransformersTokenizer,
    Vocabulary,
    WordTokenizer,
    open_pictures,
    pad_texts,
)
from itmkit.data.order import EpochOrder
from itmkit.data.tokenizer import CaptionTokens
from itmkit.nn import TransformerText

BATCH = 128
IMAGES, REGIONS, WIDTH = 1280, 36, 2048
PHOTOS, SIDE = 128, 224
WORDS = 8000


def comparisons() -> Iterator[Comparison]:
    """Reading features, photos and photos inside files; captions tokenised once, or in buckets."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _features(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from _photos(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from _photos_inside_files(Path(folder))
    captions = _captions(30_000)
    with tempfile.TemporaryDirectory() as folder:
        for name, tokenizer in _tokenizers(captions, Path(folder)):
            yield _epoch_of_texts(name, tokenizer, captions)
    yield _bucketed_steps(captions)


def _last(batches: Iterable[object]) -> None:
    for _ in batches:
        pass  # like a training loop: a batch is there until the next one is


# --------------------------------------------------------------------------------- features


def _features(folder: Path) -> Iterator[Comparison]:
    rng = np.random.default_rng(0)
    path = folder / "train_ims.npy"
    shape = (IMAGES, REGIONS, WIDTH)
    stored = np.lib.format.open_memmap(path, "w+", dtype=np.float32, shape=shape)
    for row in stored:
        row[...] = rng.random(row.shape, dtype=np.float32)
    stored.flush()
    (folder / "train_caps.txt").write_text("\n".join(_captions(IMAGES)) + "\n")

    data = ImageTextData(partial(PrecompDataset, root=folder), batch_size=BATCH)
    loader, dataset = data.train_dataloader(), data.split("train")
    rows = [batch.image_ids.tolist() for batch in loader]
    array = np.load(path, mmap_mode="r")
    difference = max(
        float(np.abs(batch.images.features.numpy() - array[own]).max())
        for batch, own in zip(loader, rows, strict=True)
    )
    size = f"{IMAGES} images of {REGIONS} × {WIDTH} float32, shuffled, warm cache"
    ways = {
        "loader": lambda: _last(loader),
        "dataset": lambda: _last(map(dataset.source.read, rows)),
        "memmap": lambda: _last(array[own] for own in rows),
    }
    seconds = interleave(ways, repeats=9)
    for way, what in (
        ("loader", f"batches of {BATCH} of `ImageTextData` over `PrecompDataset`, texts and all"),
        ("dataset", f"`PrecompDataset.source.read`, {BATCH} rows at a time"),
    ):
        yield Comparison(
            name=f"data.features_{way}",
            work=f"{what}: {size}",
            against="the same rows by fancy indexing of a numpy memmap",
            ours=seconds[way],
            theirs=seconds["memmap"],
            target=1.3,
            better="overhead",
            difference=difference,
        )


# --------------------------------------------------------------------------------- photos


def _photos(folder: Path) -> Iterator[Comparison]:
    given = os.environ.get("ITMKIT_BENCH_PHOTOS")
    images = Path(given) if given else made_photos(folder / "photos")
    paths = sorted(images.glob("*.jpg"))[:PHOTOS]
    entries = [
        {"filename": path.name, "split": "test", "sentences": [{"raw": "a dog"}]} for path in paths
    ]
    annotations = folder / "dataset.json"
    annotations.write_text(json.dumps({"images": entries}))
    dataset = KarpathyDataset("test", annotations, images, image_size=SIDE)
    words = WordTokenizer(Vocabulary.build(["a dog"], min_count=1))
    data = ImageTextData(lambda split: dataset, words, eval_batch_size=16, num_workers=1)
    loader = data.test_dataloader()
    ways = {
        "worker": lambda: _last(loader),
        "process": lambda: _last(map(dataset.image, range(len(paths)))),
        "pillow": lambda: _last(map(_decoded, paths)),
    }
    seconds = interleave(ways, repeats=9)
    size = f"{len(paths)} {'given photos' if given else 'photos of 500 × 375'} to {SIDE} × {SIDE}"
    for way, what, note in (
        ("process", "`KarpathyDataset.image`, no worker", ""),
        (
            "worker",
            "batches of `ImageTextData`, one worker",
            "The worker hands over bytes, which are normalised here while it goes on reading.",
        ),
    ):
        yield Comparison(
            name=f"data.photos_{way}",
            work=f"{what}: {size}, cut and normalised",
            against="Pillow alone: decoded and scaled, not cut, not normalised",
            ours=seconds[way],
            theirs=seconds["pillow"],
            target=1.25,
            better="overhead",
            note=note,
        )


def _photos_inside_files(folder: Path) -> Iterator[Comparison]:
    given = os.environ.get("ITMKIT_BENCH_PHOTOS")
    images = Path(given) if given else made_photos(folder / "photos")
    paths = sorted(images.glob("*.jpg"))[:PHOTOS]
    names = [path.name for path in paths]
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    size = Preprocessing(SIDE)
    sources: dict[str, Photos] = {"files": PhotoFolder("all", names, images, preprocessing=size)}
    for kind, pictures in _packed(paths, folder).items():
        sources[kind] = PackedPhotos("all", names, pictures, preprocessing=size)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()

    def read(source: Photos) -> None:
        _last(map(source.image, order))

    seconds = interleave({kind: partial(read, own) for kind, own in sources.items()}, repeats=9)
    expected = [sources["files"].image(row) for row in order]
    for kind, source in sources.items():
        if kind != "files":
            same = all(map(torch.equal, map(source.image, order), expected))
            yield Comparison(
                name=f"data.photos_in_{kind}",
                work=f"{len(names)} photos to {SIDE} × {SIDE} out of {kind}, in random order",
                against="the same photos as files",
                ours=seconds[kind],
                theirs=seconds["files"],
                target=1.1,
                better="overhead",
                difference=0.0 if same else 1.0,
            )


def _packed(paths: list[Path], folder: Path) -> dict[str, PictureFile]:
    """The photos in every kind of file, where its library is installed."""
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    parquet.write_table(pa.table({"image": rows}), folder / "photos.parquet")
    found = {kind: open_pictures(folder / f"photos.{kind}", "all") for kind in ("tar", "parquet")}
    if find_spec("datasets"):
        from datasets import Dataset, Features
        from datasets import Image as Pictures

        dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Pictures()}))
        dataset.save_to_disk(folder / "saved")
        found["dataset"] = open_pictures(folder / "saved", "all")
    return {kind: pictures for kind, pictures in found.items() if pictures is not None}


def made_photos(folder: Path, count: int = PHOTOS) -> Path:
    """JPEGs of 500 × 375, about as hard to decode as photos."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        patches = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        smooth = Image.fromarray(patches).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + rng.normal(0, 8, (375, 500, 3))
        photo = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        photo.save(folder / f"{i}.jpg", quality=90)
    return folder


def _decoded(path: Path) -> np.ndarray:
    with Image.open(path) as photo:
        photo.draft("RGB", (2 * SIDE, 2 * SIDE))
        rgb = photo.convert("RGB")
    scale = SIDE / min(rgb.size)
    size = int(rgb.width * scale), int(rgb.height * scale)
    return np.asarray(rgb.resize(size, Image.Resampling.BICUBIC))


# --------------------------------------------------------------------------------- captions


def _captions(count: int) -> list[str]:
    """Captions as long as those of Flickr8k: 10.8 words, with a standard deviation of 3.8."""
    rng = np.random.default_rng(0)
    lengths = rng.gamma(8.1, 1.33, count).round().astype(int).clip(1, 36)
    frequency = 1 / np.arange(1, WORDS + 1)
    words = rng.choice(WORDS, size=lengths.sum(), p=frequency / frequency.sum())
    ends = lengths.cumsum()
    return [
        " ".join(_spelt(word) for word in own) + "."
        for own in (words[end - n : end] for n, end in zip(lengths, ends, strict=True))
    ]


def _spelt(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def _tokenizers(captions: list[str], folder: Path) -> Iterator[tuple[str, Tokenizer]]:
    vocabulary = Vocabulary.build(captions, min_count=1)
    yield "words", WordTokenizer(vocabulary)

    from transformers.models.bert import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *vocabulary.words[5:]]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    yield "pieces", TransformersTokenizer(folder)


def _epoch_of_texts(name: str, tokenizer: Tokenizer, captions: list[str]) -> Comparison:
    tokens = CaptionTokens(map(tokenizer.encode, captions))
    order = torch.randperm(len(captions)).split(BATCH)

    def cached() -> list[Tensor]:
        return [tokens.padded(rows, tokenizer.pad_id).ids for rows in order]

    def anew() -> list[Tensor]:
        return [
            pad_texts(
                [tokenizer.encode(captions[row]).ids for row in rows.tolist()], tokenizer.pad_id
            ).ids
            for rows in order
        ]

    difference = max(float((a - b).abs().max()) for a, b in zip(cached(), anew(), strict=True))
    seconds = interleave({"ours": cached, "theirs": anew}, repeats=3, warmup=0)
    return Comparison(
        name=f"data.texts_{name}",
        work=f"texts of an epoch of {len(captions)} captions, tokenised once, batches of {BATCH}",
        against=f"the same, tokenised by `{type(tokenizer).__name__}` for every batch",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        difference=difference,
        note="Tokenising once takes as long as one epoch of the other way.",
    )


def _bucketed_steps(captions: list[str], *, bucket: int = 8, batches: int = 16) -> Comparison:
    tokenizer = WordTokenizer(Vocabulary.build(captions, min_count=1))
    tokens = CaptionTokens(map(tokenizer.encode, captions[: batches * BATCH]))
    config = {
        "model_type": "bert",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    }
    encoder = TransformerText(config=config)

    def epoch(buckets: int) -> tuple[list[Texts], float]:
        order = EpochOrder(
            len(tokens), batch_size=BATCH, seed=0, bucket_batches=buckets, sizes=tokens.lengths
        )
        rows = torch.tensor([row for _, row in order]).split(BATCH)
        texts = [tokens.padded(own, tokenizer.pad_id) for own in rows]
        real, padded = zip(
            *((int(text.mask.sum()), text.mask.numel()) for text in texts), strict=True
        )
        return texts, 1 - sum(real) / sum(padded)

    def steps(texts: list[Texts]) -> None:
        for text in texts:
            encoder(text.ids, text.mask)[0].sum().backward()
            encoder.zero_grad()

    (bucketed, less), (mixed, more) = epoch(bucket), epoch(0)
    seconds = interleave(
        {"ours": partial(steps, bucketed), "theirs": partial(steps, mixed)}, repeats=5
    )
    return Comparison(
        name="data.buckets",
        work=f"text encoder of 4 layers of 128, forward and backward, {batches} batches of {BATCH} "
        f"captions, `bucket_batches={bucket}`",
        against="the same captions in batches drawn at random",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        note=f"Padding is {less:.0%} of the tokens instead of {more:.0%}.",
    )
