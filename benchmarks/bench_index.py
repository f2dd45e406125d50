"""Making an index, bringing it up to date, and the command that searches it.

Photos are made here; ITMKIT_BENCH_PHOTOS names a folder of JPEGs to be read instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.bench_data import made_photos
from benchmarks.timing import Comparison, interleave
from itmkit.data import ShapesDataset, Vocabulary, WordTokenizer
from itmkit.data.preprocessing import Preprocessing
from itmkit.files import copy_file
from itmkit.index import build_index
from itmkit.index.pictures import read_pictures
from itmkit.nn import BagOfWords, TimmGrid
from itmkit.retriever import Retriever
from itmkit.systems import MATE

BACKBONE, SIDE, BATCH = "tf_efficientnet_lite0", 224, 32
PHOTOS, UNCHANGED = 256, 10_000


def comparisons() -> Iterator[Comparison]:
    """New photos, photos that did not change, and a search from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        yield from photos(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield unchanged(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield command(Path(folder))


def make_retriever(backbone: str, side: int) -> Retriever:
    """A model with weights drawn at random."""
    words = Vocabulary.build(["a dog"], min_count=1)
    model = MATE(TimmGrid(backbone, 256, image_size=side), BagOfWords(len(words), 256))
    return Retriever(model, WordTokenizer(words), Preprocessing(size=side))


def photos(folder: Path) -> Iterator[Comparison]:
    """From JPEGs to an index on disk, against the model alone on decoded pixels."""
    given = os.environ.get("ITMKIT_BENCH_PHOTOS")
    source = Path(given) if given else made_photos(folder / "made", PHOTOS)
    root = folder / "photos"
    root.mkdir()
    for path in sorted(source.glob("*.jpg"))[:PHOTOS]:
        copy_file(path, root / path.name)
    retriever = make_retriever(BACKBONE, SIDE)
    names = sorted(path.name for path in root.iterdir())
    preprocessing, outputs = retriever.preprocessing, count()

    def read() -> list[Any]:
        options = {"batch_size": BATCH, "num_workers": 0, "max_pixels": 10**8}
        return list(read_pictures(root, names, preprocessing, **options))

    decoded = [batch.pixels for batch in read()]

    def index(num_workers: int) -> None:
        target = folder / f"index-{next(outputs)}"
        build_index(
            retriever, root, target, batch_size=BATCH, num_workers=num_workers, progress=False
        )

    seconds = interleave(
        {
            "worker": lambda: index(1),
            "process": lambda: index(0),
            "backbone": lambda: [retriever.encode_pixels(pixels) for pixels in decoded],
            "decoding": read,
        },
        repeats=3,
    )
    decoding = sorted(seconds["decoding"])[1]
    size = f"{len(names)} {'given photos' if given else 'photos of 500 × 375'}"
    for way, how in (("worker", "one worker"), ("process", "no worker")):
        yield Comparison(
            name=f"index.photos_{way}",
            work=f"`build_index`, {how}: {size}, `{BACKBONE}` at {SIDE} × {SIDE}",
            against="the same model on the decoded pixels, in memory",
            ours=seconds[way],
            theirs=seconds["backbone"],
            target=1 / 0.9 if way == "worker" else None,
            better="overhead",
            note=f"Decoding the photos takes {decoding:.2g} s of one core.",
        )


def unchanged(folder: Path) -> Comparison:
    """All files are looked at, none is read."""
    Image.new("RGB", (24, 24), "red").save(folder / "one.jpg")
    one = (folder / "one.jpg").read_bytes()
    root = folder / "photos"
    for number in range(UNCHANGED):
        path = root / f"{number % 100:02d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one + number.to_bytes(4, "big"))
    retriever = make_retriever("test_resnet", 32)

    def index() -> None:
        build_index(retriever, root, folder / "index", batch_size=256, progress=False)

    index()
    return Comparison(
        name="index.unchanged",
        work=f"`build_index` again, {UNCHANGED:,} pictures of which none has changed",
        against="the limit of 2 s",
        ours=interleave({"ours": index}, repeats=5)["ours"],
        theirs=[2.0],
        target=1,
        better="overhead",
    )


def command(folder: Path) -> Comparison:
    """``itmkit search`` in fresh interpreters, against what every such command imports."""

    def itmkit(*words: str) -> Callable[[], object]:
        return _run([sys.executable, "-m", "itmkit", *words], folder)

    data = ["--data.dataset.length", "128", "--untrained", "false"]
    itmkit(
        "fit",
        "--config",
        "mate/shapes",
        "--name",
        "run",
        "--trainer.max_steps=1",
        "--report=false",
        *data,
    )()
    dataset = ShapesDataset("test", length=50)
    (folder / "scenes").mkdir()
    for row in range(len(dataset)):
        Image.fromarray(dataset.pixels(row)).save(folder / f"scenes/{row}.jpg")
    itmkit("index", "scenes", "--model", "run", "--calibrate", "false")()
    imports = [sys.executable, "-c", "import torch, lightning, transformers"]
    seconds = interleave(
        {"ours": itmkit("search", "run", "a red circle"), "theirs": _run(imports, folder)},
        repeats=7,
    )
    return Comparison(
        name="index.command",
        work="`itmkit search`, an index of 50 pictures, `mate/shapes`, a fresh interpreter",
        against="`import torch, lightning, transformers`",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        target=1.3,
        better="overhead",
        note="timm, which makes this model's backbone, is imported besides.",
    )


def _run(words: list[str], folder: Path) -> Callable[[], object]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return lambda: subprocess.run(
        words, cwd=folder, env=environment, check=True, capture_output=True
    )
