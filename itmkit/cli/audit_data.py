"""``itmkit audit --data``: mismatched pairs, images in two splits, odd captions of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itmkit.checks import InputError
from itmkit.cli.arguments import check_words, composed, split_options

if TYPE_CHECKING:
    from itmkit.systems import Matcher

HELP = """\
usage: itmkit audit --data CONFIG [--output FOLDER] [--mismatches false] [options of fit]

Look for faults of a dataset: lengths, scripts and unknown words of captions, captions that images
share, images that are in two splits, and captions that are of another image. For the last, the
system of CONFIG is trained twice, on half of the images each, and judges the other half.

options:
  --data CONFIG          name of a shipped configuration, or a file
  --output FOLDER        for duplicates.csv, mismatches.csv, and exclude.csv for --data.exclude of
                         fit (default: audit)
  --mismatches false     no trainings
  --threshold COSINE     from which images are nearly equal (default: 0.99)
  options of fit         such as --data.dataset.images photos --trainer.max_steps 300
"""
_OWN = ("data", "output", "mismatches", "threshold")


def audit_data(words: Sequence[str]) -> None:
    """Run the command with the words after ``itmkit audit``."""
    given = split_options(words)
    own = {name: value or "" for name, value in given if name in _OWN}
    rest = [(name, value) for name, value in given if name not in _OWN]
    if {"h", "help"} & {name for name, _ in given}:
        print(HELP)
        return
    check_words(words, _OWN)
    if not own["data"]:
        raise InputError("--data is empty; expected the name of a configuration, or a file")
    if not own.get("output", "audit"):
        raise InputError("--output is empty; expected a folder")
    wanted = own.get("mismatches", "true")
    if wanted not in ("true", "false"):
        raise InputError(f"--mismatches is {wanted!r}; expected true or false")
    every = [("config", own["data"]), *rest]
    options = [f"--{name}" if value is None else f"--{name}={value}" for name, value in every]
    _audit(options, Path(own.get("output", "audit")), wanted, own.get("threshold", "0.99"))


def _audit(options: list[str], folder: Path, wanted: str, threshold: str) -> None:
    from itmkit.cli.fit import fit
    from itmkit.data import ImageTextData
    from itmkit.data_audit import audit_data as audit
    from itmkit.systems import load_run
    from itmkit.systems.build import build

    try:
        cosine = float(threshold)
    except ValueError:
        raise InputError(f"--threshold is {threshold!r}; expected a cosine in [0, 1]") from None
    config = composed(["fit", *options]).config
    data: Any = build(config, {"data": ImageTextData}, source="configuration")["data"]
    trainer = config.get("trainer", {})
    length = ", ".join(f"{k} {trainer[k]}" for k in ("max_steps", "max_epochs") if k in trainer)
    captions = len(data.training_captions)

    def train(exclude: Path) -> tuple[Matcher, ImageTextData]:
        place = ["--trainer.default_root_dir", str(folder), "--name", exclude.stem]
        fit([*options, "--data.exclude", str(exclude), *place, "--untrained", "false"])
        return load_run(folder / exclude.stem / "latest")

    audit(
        data,
        folder,
        fit=train if wanted == "true" else None,
        cost=f"two trainings ({length or 'of the length of fit'}) on half of {captions:,} captions "
        "each take as long as two runs of itmkit fit; then each model encodes all",
        threshold=cosine,
    )
