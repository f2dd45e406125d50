"""The law of imports: downwards only, and nothing heavy in the lower layers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import itmkit

PACKAGE = Path(itmkit.__file__).parent
LAYERS = {
    "__main__": 6,
    "cli": 5,
    "app": 4,
    "doctor": 3,
    "report": 3,
    "data_audit": 3,
    "export": 3,
    "retriever": 3,
    "runs": 3,
    "testing": 3,
    "evaluation": 2,
    "extraction": 2,
    "frozen_features": 2,
    "index": 2,
    "integrations": 2,
    "systems": 2,
    "callbacks": 1,
    "data": 1,
    "losses": 1,
    "metrics": 1,
    "nn": 1,
    "retrieval": 1,
    "training": 1,
    "configs": 0,
    "distributed": 0,
    "precision": 0,
    "_internals": 0,
    "checks": 0,
    "chunks": 0,
    "extras": 0,
    "files": 0,
    "machine": 0,
    "lazy_imports": 0,
    "memory": 0,
    "modes": 0,
    "pretrained": 0,
    "vectors": 0,
}
#: what a package may import from its own layer: retrieval needs batches and recall, the miner of
#: negatives encodes and orders data, the momentum teacher is a callback of one of nn, the cache of
#: features needs what extracts them, and training synchronises the batch norms of nn
BESIDE = {
    "callbacks": ("itmkit.data", "itmkit.nn", "itmkit.retrieval"),
    "retrieval": ("itmkit.data.batch", "itmkit.metrics"),
    "retriever": ("itmkit.report.explain",),
    "frozen_features": ("itmkit.extraction",),
    "training": ("itmkit.nn",),
}


def package_of(module: str) -> str:
    return module.split(".")[1]


def imported_modules(source: str) -> set[str]:
    """Modules of itmkit that a source imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {
                f"itmkit.{alias.name}" if node.module == "itmkit" else str(node.module)
                for alias in node.names
            }
    return {name for name in names if name.startswith("itmkit.")}


def broken_laws(module: str, source: str) -> list[str]:
    own = package_of(module)
    return [
        name
        for name in imported_modules(source)
        if not name.startswith("itmkit.__version__")
        and package_of(name) != own
        and LAYERS[package_of(name)] >= max(LAYERS[own], 1)
        and not name.startswith(BESIDE.get(own, ()))
    ]


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_run_downwards(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts != ("__init__",):
        assert parts[0] in LAYERS, f"{parts[0]} is in no layer"
        assert broken_laws(".".join(("itmkit", *parts)), path.read_text()) == []


def test_the_law_itself() -> None:
    assert broken_laws("itmkit.nn.x", "from itmkit.distributed import gather") == []
    assert broken_laws("itmkit.nn.x", "def f():\n    from itmkit.losses import y") != []
    assert broken_laws("itmkit.data.x", "import itmkit.systems") != []
    assert broken_laws("itmkit.retrieval.x", "from itmkit.data.batch import Batch") == []
    assert broken_laws("itmkit.retrieval.x", "from itmkit.data import Batch") != []


def modules_after(*statements: str) -> list[set[str]]:
    """Top-level modules that a fresh interpreter holds after each of some statements."""
    lines = ["import sys", *(f"{one}\nprint(*sys.modules, file=sys.stderr)" for one in statements)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    rows = done.stderr.splitlines()[-len(statements) :]
    return [{name.partition(".")[0] for name in row.split()} for row in rows]


def test_light_packages_import_nothing_heavy_and_training_no_wandb_and_no_timm_unasked() -> None:
    files = [*(PACKAGE / "nn").rglob("*.py"), *(PACKAGE / "losses").rglob("*.py")]
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]
    light, training, timm = modules_after(
        f"import {', '.join(m.removesuffix('.__init__') for m in modules)}"
        "; assert 'torch._dynamo' not in sys.modules",  # the compiler: a second
        "import itmkit.cli.matcher_run, itmkit.data.module, itmkit.systems",
        "itmkit.nn.TimmGrid('test_resnet'); assert 'wandb.sdk' not in sys.modules",
        "import timm; assert timm.utils.summary.wandb.Settings",
    )[:3]
    assert "torch" in light
    heavy = "lightning pytorch_lightning torchmetrics torchvision transformers timm wandb"
    assert not light & set(heavy.split())
    assert "lightning" in training
    assert not training & {"timm", "wandb"}
    assert "timm" in timm


def test_package_and_help_import_no_torch() -> None:
    (loaded,) = modules_after("from itmkit.cli import main; main(['--help'])")
    assert "torch" not in loaded
