"""The ranking of mismatches at its real size: minutes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from swapped_shapes import SwappedShapes

from itmkit.cli import main
from itmkit.data import ImageTextData
from itmkit.data_audit import rank_mismatches
from itmkit.systems import Matcher, load_run

DATASET = "swapped_shapes.SwappedShapes"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.* have no captions")  # two lose theirs to others
def test_moved_captions_of_shapes_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lengths = {"val": 200, "test": 200}
    data = ImageTextData(partial(SwappedShapes, length=lengths), eval_batch_size=250)

    def fit(exclude: Path) -> tuple[Matcher, ImageTextData]:
        words = ["--config", "mate/shapes", "--data.dataset", DATASET, "--untrained", "false"]
        length = ["--data.dataset.length", '{"val":200,"test":200}']
        main(["fit", *words, *length, "--data.exclude", str(exclude), "--name", exclude.stem])
        return load_run(Path("runs") / exclude.stem / "latest")

    found = rank_mismatches(fit, data, tmp_path)
    train = data.split("train")
    assert isinstance(train, SwappedShapes)
    moved = train.is_swapped[[one.caption for one in found]].double()
    precision = moved.cumsum(0) / torch.arange(1, len(moved) + 1)
    assert float((precision * moved).sum() / moved.sum()) >= 0.9
