"""Every loss of the library keeps the laws."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from losses import LOSSES
from torch import nn

import itmkit.losses
from itmkit.testing import check_loss


@pytest.mark.parametrize("name", LOSSES)
def test_laws(name):
    check_loss(LOSSES[name])


def test_a_loss_of_scores_without_costs_cannot_be_made():
    class Empty(itmkit.losses.ScoreLoss):
        pass

    with pytest.raises(TypeError, match=r"abstract method '?costs"):
        Empty()


def test_every_loss_is_in_the_registry():
    public = {one for one in vars(itmkit.losses).values() if inspect.isclass(one)}
    losses = {one for one in public if issubclass(one, nn.Module)}
    made = {type(make()) for make in LOSSES.values()}
    assert losses - made == {itmkit.losses.Distributed, itmkit.losses.ScoreLoss}


def test_every_loss_is_in_the_table_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs/losses.md").read_text()
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for loss in {type(make()) for make in LOSSES.values()}:
        assert f"`{loss.__name__}`" in readme
        assert f"| `{loss.__name__}` |" in page
        assert f"losses.{loss.__name__}(" in page
