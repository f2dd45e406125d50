"""The sentences of a run, by whatever name its validation split has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from itmkit.checks import InputError
from itmkit.data import KarpathyDataset
from itmkit.retriever.calibrate import calibration_of_run
from itmkit.retriever.queries import validation_captions


@pytest.mark.parametrize("split", ["train", "val", None])
def test_validation_captions(
    pixel_run: Path, photos: Path, tmp_path: Path, split: str | None
) -> None:
    copy = Path(shutil.copytree(pixel_run.resolve(), tmp_path / "run"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["init_args"]["val_split"] = split
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    if split is None:
        with pytest.raises(InputError, match=r"queries is None, .* to validate on; expected sent"):
            validation_captions(str(copy))
        with pytest.raises(InputError, match="val_split is None; expected the name of a split"):
            calibration_of_run(copy)
    else:
        known = KarpathyDataset(split, photos / "data.json", photos / "images").captions
        assert validation_captions(str(copy)) == known
