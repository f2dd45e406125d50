from __future__ import annotations

import subprocess
import sys


def test_import_of_nn_is_light() -> None:
    code = (
        "import sys, itmkit.nn;"
        "heavy = {'lightning', 'pytorch_lightning', 'torchmetrics', 'transformers', 'timm',"
        " 'torchvision', 'wandb'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
