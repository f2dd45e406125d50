"""What a user gets wrong in options is told in one line, before a run leaves anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_cli import CONFIG, refused, run
from tiny_runs import write_config

pytestmark = pytest.mark.usefixtures("tiny_folder")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--model.image_encoder.init_args.model_name resnet500", "resnet500"),
        ("--model.text_encoder.init_args.dim 8", "text_encoder.dim 8"),
        (
            "--model.text_encoder.init_args.word_vectors nowhere.npy",
            "No such file or directory: 'nowhere.npy'",
        ),
        (
            "--trainer.callbacks itmkit.callbacks.FreezeUntil "
            "--trainer.callbacks.submodules [text_encoder] --trainer.callbacks.until -1",
            "until",  # of several types: a list of callbacks, or one
        ),
    ],
)
def test_error_of_a_nested_constructor(
    options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(Path(), "MATE")
    line = refused(capsys, "fit", "--config", str(path), *options.split())
    assert told in line
    assert "subtypes" not in line
    assert len(line) < 150


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--trainer.val_check_interval 1000", "`val_check_interval` (1000) must be less"),
        ("--trainer.strategy fsdp", "requires a GPU accelerator"),
        ("--trainer.strategy nope", "strategy='nope'"),
        ("--trainer.accelerator cpus", "accelerator='cpus'"),
        ("--trainer.devices [5]", "`devices` selected with `CPUAccelerator`"),
        ("--trainer.num_nodes 0", "`num_nodes` must be a positive integer"),
        ("--trainer.logger MLFlowLogger", "mlflow"),
        ("--trainer.limit_val_batches -3", "limit_val_batches"),
        ("--model.rate -1", "Invalid learning rate: -1.0"),
    ],
)
def test_error_of_an_option_that_lightning_or_torch_checks(
    options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "fit", "--config", "tiny.yaml", *options.split())
    assert told in line


def test_fault_of_the_program_in_a_constructor_keeps_its_own_traceback() -> None:
    Path("tiny.yaml").write_text(CONFIG.replace("TinyMatcher", "FaultyMatcher"))
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer") as error:
        run("fit")
    assert "FaultyMatcher" not in str(error.value)
    assert not Path("runs").exists()
