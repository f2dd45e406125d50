from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from itmkit.cli.errors import one_line, report_user_errors
from itmkit.configs import config_path


def caught(action: Callable[[], object]) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def raised(error: Exception) -> Exception:
    def action() -> None:
        raise error

    return caught(action)


def test_files_and_network_are_the_users() -> None:
    error = caught(lambda: open("no/such/file"))  # noqa: SIM115
    assert one_line(error) == "No such file or directory: 'no/such/file'"
    assert one_line(raised(ConnectionError("no\n  route"))) == "no route"


def test_values_refused_by_itmkit_are_the_users() -> None:
    assert "'x' is neither" in str(one_line(caught(lambda: config_path("x"))))
    from itmkit.losses import HECTLoss

    message = one_line(caught(lambda: HECTLoss(temperature=-1.0)))
    assert message is not None
    assert "temperature" in message
    assert "-1.0" in message


@pytest.mark.parametrize(
    "error",
    [ValueError("of another library"), KeyError("k"), RuntimeError("r"), TypeError("t")],
    ids=repr,
)
def test_all_else_is_not(error: Exception) -> None:
    assert one_line(raised(error)) is None
    with pytest.raises(type(error)), report_user_errors():
        raise error


def test_wrong_trainer_is_the_users() -> None:
    assert one_line(raised(MisconfigurationException("no\nGPU"))) == "no GPU"


def test_warnings_of_itmkit_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    inside, outside = config_path("mate/shapes").parent / "x.py", "/elsewhere/x.py"
    with report_user_errors():
        told = [
            warnings.formatwarning("two\nlines", UserWarning, str(path), 1, "code")
            for path in (inside, outside)
        ]
    assert told == [
        "itmkit: warning: two lines\n",
        "/elsewhere/x.py:1: UserWarning: two\nlines\n  code\n",
    ]


def test_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, report_user_errors():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "itmkit: interrupted\n"


def test_faults_inside_of_libraries_are_not_the_users() -> None:
    """The same types of error, from the same libraries, but not from checks of options."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    weights = torch.zeros(1, requires_grad=True)
    for fault in (
        lambda: optimizer.load_state_dict({"param_groups": [{}, {}], "state": {}}),
        lambda: torch.nn.Linear(2, 2)(torch.zeros(3)),
        lambda: weights.expand(2).backward(),
        lambda: dict(zip([1], [1, 2], strict=True)),
    ):
        assert one_line(caught(fault)) is None
    assert one_line(caught(lambda: torch.optim.SGD([weights], lr=-1.0))) is not None


def test_nothing_is_said_to_a_reader_that_has_left() -> None:
    """As of ``itmkit configs | head -1``."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "itmkit", "configs"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")
