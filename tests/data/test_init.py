from __future__ import annotations

import subprocess
import sys

import pytest

import itmkit.data


def test_smoke_every_public_name_is_there() -> None:
    for name in itmkit.data.__all__:
        assert getattr(itmkit.data, name).__name__ == name
    assert sorted(itmkit.data._HOME) == itmkit.data.__all__
    with pytest.raises(AttributeError, match="'Dogs'"):
        _ = itmkit.data.Dogs


def test_datasets_import_neither_lightning_nor_models() -> None:
    code = (
        "import sys; from itmkit.data import Batch, KarpathyDataset, PrecompDataset, Vocabulary; "
        "print({'lightning', 'timm', 'transformers', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
