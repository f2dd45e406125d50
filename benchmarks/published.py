"""The published configurations on data of their real shapes: ``python -m benchmarks.published``.

The data is made up, the weights are random, of the sizes of BERT-base and Swin-B; nothing is
downloaded. Each configuration takes some training steps, is resumed, measured on 200 images × 1,000
captions, re-ranks 1,000 images × 5,000 captions where it has a second stage, and takes two steps in
two processes (on the CPU). Recall is that of chance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from benchmarks.claims import Processes
from benchmarks.step_clock import FILE_NAME
from itmkit.files import read_json, write_text

CONFIGS = tuple(
    f"{system}/{dataset}" for system in ("mate", "daim", "tvrn") for dataset in ("f30k", "coco")
)
PARTS = ("fit", "resume", "validate", "second-stage", "processes")
#: runs commands one after the other, also where one fails
_CHILD = """
import json, sys, traceback
from itmkit.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except (Exception, SystemExit):
        traceback.print_exc()
"""
_BERT_VOCABULARY = 30_522
_REGIONS, _WIDTH, _PIXELS = 36, 2048, 256


class Sizes(NamedTuple):
    """How much is computed.

    Args:
        accelerator: of the Trainer, of all but the two processes.
        steps: of training; DAIM's backbones are frozen in the first half.
        batch: images of a batch; None: as published.
        images: of the validation split, of five captions each.
        gallery: images of the test split, for the second stage.
        candidates: that the second stage puts in order for each query.
    """

    accelerator: str
    steps: int
    batch: int | None
    images: int
    gallery: int
    candidates: int


# ---------------------------------------------------------------------------------------- data


def make_captions(count: int, rng: np.random.Generator) -> list[str]:
    """Sentences of 8 to 20 words out of a thousand."""
    lengths = rng.integers(8, 21, count)
    return [" ".join(f"word{k}" for k in rng.integers(0, 1000, length)) for length in lengths]


def make_regions(folder: Path, lengths: Mapping[str, int]) -> None:
    """Splits in the layout of SCAN: 36 regions of 2,048 numbers with boxes, five captions."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, length in lengths.items():
        features = rng.random((length, _REGIONS, _WIDTH), dtype=np.float32)
        corners = np.sort(rng.random((length, _REGIONS, 2, 2), dtype=np.float32), axis=2)
        np.save(folder / f"{split}_ims.npy", features)
        np.save(folder / f"{split}_boxes.npy", corners.reshape(length, _REGIONS, 4))
        captions = make_captions(5 * length, rng)
        write_text(folder / f"{split}_caps.txt", "\n".join(captions) + "\n")


def make_photos(folder: Path, lengths: Mapping[str, int]) -> None:
    """``dataset.json`` in Karpathy's form, and photos of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = []
    for split, length in lengths.items():
        captions = make_captions(5 * length, rng)
        for row in range(length):
            name = f"{split}{row}.jpg"
            coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((_PIXELS, _PIXELS)).save(folder / name)
            sentences = [
                {"raw": caption, "tokens": caption.split()}
                for caption in captions[5 * row : 5 * row + 5]
            ]
            images.append({"filename": name, "split": split, "sentences": sentences})
    write_text(folder / "dataset.json", json.dumps({"images": images}))


def make_text_model(folder: Path) -> None:
    """BERT-base of random weights, with its tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{k}" for k in range(1000))]
    words += [f"other{k}" for k in range(_BERT_VOCABULARY - len(words))]
    BertTokenizer(vocab={word: k for k, word in enumerate(words)}).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=_BERT_VOCABULARY)).save_pretrained(folder)


# --------------------------------------------------------------------------------------- runs


def overrides(config: str, sizes: Sizes) -> dict[str, Any]:
    """What differs from a published configuration."""
    system = config.split("/")[0]
    callbacks: list[dict[str, Any]] = [{"class_path": "benchmarks.step_clock.StepClock"}]
    model: dict[str, Any] = {}
    if system == "daim":
        backbones = ["image_encoder.backbone", "text_encoder.backbone"]
        freeze = {"submodules": backbones, "until": max(1, sizes.steps // 2), "unit": "step"}
        path = "itmkit.callbacks.FreezeUntil"
        callbacks.insert(0, {"class_path": path, "init_args": freeze})
        model["image_encoder"] = {"init_args": {"pretrained": False}}
    trainer = {
        "accelerator": sizes.accelerator,
        "devices": 1,
        "max_steps": sizes.steps,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": callbacks,
    }
    if sizes.accelerator == "cpu":
        trainer["precision"] = "32-true"
    data = {} if sizes.batch is None else {"batch_size": sizes.batch}
    return {
        "model": {"init_args": model},
        "data": {"init_args": data | {"num_workers": 0 if sizes.accelerator == "cpu" else 2}},
        "trainer": trainer,
    }


def commands_of(config: str, sizes: Sizes, folder: Path) -> dict[str, list[str]]:
    """The words of `itmkit` for each part."""
    system = config.split("/")[0]
    source = ["--config", config, "--config", "overrides.yaml"]
    source += ["--seed_everything", "0", "--untrained", "false"]
    if system == "daim":
        photos = folder / "photos"
        source += ["--captions", str(photos / "dataset.json"), "--photos", str(photos)]
    else:
        source += ["--features", str(folder / "regions")]
    if system != "tvrn":
        source += ["--text_model", str(folder / "bert")]
    last = "runs/fit/latest/checkpoints/last.ckpt"
    every = ["--ckpt_path", last, "--keep", "0"]
    commands = {
        "fit": ["fit", *source, "--name", "fit"],
        "resume": [
            *["fit", *source, "--name", "resume", "--ckpt_path", last],
            *["--trainer.max_steps", str(sizes.steps + 1)],
        ],
        "validate": [
            *["validate", *source, "--name", "validate", *every],
            *["--trainer.limit_val_batches", "1.0"],
        ],
    }
    if system == "mate":
        again = ["--model.rerank_top_k", str(sizes.candidates), "--model.rerank_weight", "0.5"]
        commands["second-stage"] = ["test", *source, "--name", "second-stage", *every, *again]
    commands["processes"] = [
        *["fit", *source, "--name", "processes", "--trainer.accelerator", "cpu"],
        *["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "2"],
        *["--trainer.precision", "32-true", "--data.batch_size", "4"],
    ]
    return commands


def run_config(
    config: str, sizes: Sizes, parts: Sequence[str], folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the parts of a configuration: what each took, or its error."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        write_text(work / "overrides.yaml", yaml.safe_dump(overrides(config, sizes)))
        commands = commands_of(config, sizes, folder)
        wanted = [part for part in commands if part in parts]
        if wanted != ["processes"] and "fit" not in wanted:
            wanted.insert(0, "fit")  # whose checkpoint the others read
        one = [commands[part] for part in wanted if part != "processes"]
        calls = [["-c", _CHILD, json.dumps(one)]] if one else []
        if "processes" in wanted:
            calls.append(["-m", "itmkit", *commands["processes"]])
        log, text = work / "log", ""
        for call in calls:
            Processes().run([sys.executable, *call], log=log, cwd=work)
            text = log.read_text(encoding="utf-8", errors="replace")[-6000:]
            for part in wanted:
                if (part == "processes") == (call[0] == "-m"):
                    clock = work / f"runs/{part}/latest/{FILE_NAME}"
                    clock = next(iter(work.glob(f"runs/{part}/2*/{FILE_NAME}")), clock)
                    found = read_json(clock) if clock.exists() else {"error": text}
                    yield part, found


# -------------------------------------------------------------------------------------- table


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of what was measured."""
    lines = [
        "| configuration | batch | s a step | memory of a step | images × captions | s | memory | "
        "second stage | s | memory | resumed | two processes |",
        "|" + "---|" * 12,
    ]
    for config, record in records.items():
        sizes = Sizes(**record["sizes"])
        fit = record.get("fit", {}).get("steps", [])
        most = max((step["trained"] for step in fit), default=0)
        phases = {"": [step for step in fit if step["trained"] == most]}
        if any(step["trained"] < most for step in fit):
            phases[", frozen backbones"] = [step for step in fit if step["trained"] < most]
        again = f"{sizes.gallery} × {5 * sizes.gallery}, {sizes.candidates} candidates"
        for number, (phase, steps) in enumerate(phases.items()):
            times = [step["seconds"] for step in steps[1:] or steps]
            cells = [
                f"`{config}`{phase}",
                "as published" if sizes.batch is None else str(sizes.batch),
                f"{statistics.median(times):.2f}" if times else "",
                _memory(max((step["megabytes"] for step in steps), default=None)),
            ]
            if number == 0:
                cells += [f"{sizes.images} × {5 * sizes.images}", *_evaluation(record, "validate")]
                second = _evaluation(record, "second-stage")
                cells += [again if "second-stage" in record else "", *second]
                cells += [_verdict(record, part) for part in ("resume", "processes")]
            else:
                cells += [""] * 8
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _evaluation(record: Mapping[str, Any], part: str) -> list[str]:
    found = record.get(part, {})
    if "error" in found:
        return ["failed", ""]
    found = found.get("evaluation")
    return ["", ""] if found is None else [f"{found['seconds']:.1f}", _memory(found["megabytes"])]


def _memory(megabytes: float | None) -> str:
    return "" if megabytes is None else f"{megabytes / 1024:.1f} GiB"


def _verdict(record: Mapping[str, Any], part: str) -> str:
    if part not in record:
        return ""
    return "failed" if "error" in record[part] else f"to step {record[part]['global_step']}"


def main(argv: list[str] | None = None) -> int:
    """Run the configurations one after the other; the exit status is 1 where a part failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    add = parser.add_argument
    add("--accelerator", default="cpu", help="of the Trainer: cpu, gpu, …")
    add("--output", type=Path, default=Path("published.json"), help="a table goes beside it")
    add("--only", nargs="+", choices=CONFIGS, default=CONFIGS, metavar="CONFIG")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    add("--steps", type=int, default=8, help="of training")
    add("--batch", type=int, help="images of a batch; as published by default")
    add("--images", type=int, default=200, help="that are validated on, with five captions each")
    add("--gallery", type=int, default=1000, help="images of the second stage")
    add("--candidates", type=int, default=16, help="of each query in the second stage")
    arguments = parser.parse_args(argv)
    sizes = Sizes(
        arguments.accelerator,
        arguments.steps,
        arguments.batch,
        arguments.images,
        arguments.gallery,
        arguments.candidates,
    )
    records: dict[str, dict[str, Any]] = {}
    failed = False
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        systems = {config.split("/")[0] for config in arguments.only}
        trained = max(64, 2 * (sizes.batch or 128))
        if systems - {"daim"}:
            test = sizes.gallery if "second-stage" in arguments.parts else 1
            make_regions(folder / "regions", {"train": trained, "dev": sizes.images, "test": test})
        if "daim" in systems:
            make_photos(folder / "photos", {"train": trained, "val": sizes.images, "test": 1})
        if systems - {"tvrn"}:
            make_text_model(folder / "bert")
        for config in arguments.only:
            records[config] = {"sizes": sizes._asdict()}
            for part, record in run_config(config, sizes, arguments.parts, folder):
                records[config][part] = record
                told = f"[{time.monotonic() - start:.0f} s] {config}, {part}: "
                if "error" in record:
                    failed = True
                    print(f"{told}failed\n{record['error']}", file=sys.stderr, flush=True)
                else:
                    print(f"{told}done", flush=True)
                write_text(arguments.output, json.dumps(records, indent=1) + "\n")
                write_text(arguments.output.with_suffix(".md"), table(records) + "\n")
    print(table(records))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
