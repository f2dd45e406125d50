"""``itmkit audit --data``: mismatched pairs, images in two splits, odd captions of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itmkit.checks import InputError
from itmkit.cli.arguments import check_words, composed, split_options
from itmkit.cli.options import SECTIONS, RunOptions, argument_texts, check_command
from itmkit.cli.parser import call

if TYPE_CHECKING:
    from itmkit.systems import Matcher

_OWN = ("data", "output", "mismatches", "threshold")
_SET = ("name", "untrained", "trainer.default_root_dir")  # of the trainings, by the command
_OF_DATA = {"data", "model"}  # sections that say what the data is


def audit_data(words: Sequence[str]) -> None:
    """Run the command with the words after ``itmkit audit``."""
    check_words(words, _OWN)
    given = split_options(words)
    own = [f"--{name}={value or ''}" for name, value in given if name in _OWN]
    if {"h", "help"} & {name for name, _ in given}:
        own = ["--help"]
    data, *how = call(dataset_options, own, "audit")
    others = [one for one in given if one[0] not in _OWN]
    _check_options([name for name, _ in others], trains=how[1] == "true")
    options = [("config", data), *others]
    _audit([f"--{name}" if text is None else f"--{name}={text}" for name, text in options], *how)


def dataset_options(
    *, data: str, output: str = "audit", mismatches: str = "true", threshold: str = "0.99"
) -> tuple[str, Path, str, str]:
    """Look for faults of a dataset.

    These are lengths, scripts and unknown words of captions, captions that images share, images
    that are in two splits, and captions that are of another image. For the last, the system of the
    configuration is trained twice, on half of the images each, and judges the other half. Further
    options are those of fit, such as --data.dataset.images photos --trainer.max_steps 300.

    Args:
        data: Name of a shipped configuration, or a file.
        output: Folder for duplicates.csv, mismatches.csv, and exclude.csv for --data.exclude of
            fit.
        mismatches: true or false: whether there are trainings.
        threshold: Cosine from which images are nearly equal.
    """
    if not data:
        raise InputError("--data is empty; expected the name of a configuration, or a file")
    if not output:
        raise InputError("--output is empty; expected a folder")
    if mismatches not in ("true", "false"):
        raise InputError(f"--mismatches is {mismatches!r}; expected true or false")
    return data, Path(output), mismatches, threshold


def _check_options(names: Sequence[str], *, trains: bool) -> None:
    """Raise for options of fit that have no effect here."""
    check_command("fit", names)
    for name in names:
        if name in _SET:
            raise InputError(f"{name} is given; expected none: trainings are written to --output")
        of_training = name.partition(".")[0] in {*SECTIONS, *argument_texts(RunOptions)} - _OF_DATA
        if of_training and not trains:
            raise InputError(f"{name} is given, without effect where mismatches is false")


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
