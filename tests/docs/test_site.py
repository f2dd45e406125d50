"""What Sphinx makes of the pages and of the docstrings."""

from __future__ import annotations

import re
import runpy
from types import ModuleType
from typing import Any

import pytest
from doc_pages import PAGES, ROOT
from lightning.pytorch import Callback
from torch import nn

from itmkit.callbacks import FreezeUntil
from itmkit.nn import MatchingHead
from itmkit.systems import MATE

SITE = [name for name in PAGES if name.startswith("docs/")]
WIDTH = 90  # letters of a line of code that the site shows without scrolling
_BLOCK = re.compile(r"^```(?!\{)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", SITE)
def test_code_is_not_cut(name: str) -> None:
    code = "\n".join(_BLOCK.findall(PAGES[name].read_text()))
    assert [line for line in code.splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize("name", SITE)
def test_links_have_words(name: str) -> None:
    """Not the name of a page, and none in a heading, which stands in the navigation."""
    text = PAGES[name].read_text()
    assert re.findall(r"\[\w+\.md\]\(\w+\.md", text) == []
    assert re.findall(r"^#.*\]\(", text, re.MULTILINE) == []


@pytest.fixture(scope="module")
def conf() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/conf.py"))


def test_words_of_other_libraries_are_left_out(conf: dict[str, Any]) -> None:
    theirs, skip = conf["words_of_others"], conf["skip_hooks"]
    assert MATE.training_step.__doc__ is None
    assert theirs(FreezeUntil.on_fit_start)
    assert theirs(MatchingHead.forward)
    assert not theirs(MATE.encode_image)  # those of Matcher
    assert not theirs(MATE.loss)
    assert not theirs(nn.functional.relu)
    assert not theirs(3)
    assert theirs(Callback.setup)
    for method, name in ((FreezeUntil.on_fit_start, "on_fit_start"), (MATE.training_step, "x")):
        assert skip(None, "method", name, method, False, None) is True
    for method, name in ((MatchingHead.forward, "forward"), (MATE.loss, "loss")):
        assert skip(None, "method", name, method, False, None) is None
    lines = ["Define the computation performed at every call."]
    conf["clear_words_of_others"](None, "method", "x", MatchingHead.forward, None, lines)
    assert lines == []


@pytest.fixture
def extension() -> ModuleType:
    pytest.importorskip("jupytext")
    pytest.importorskip("sphinx")
    return pytest.importorskip("tutorials.extension")


@pytest.mark.extras
def test_links_to_tutorials_lead_to_their_pages(extension: ModuleType) -> None:
    source = ["[a](tutorials/shapes.py), [b](../tutorials/shapes.py), [c](../examples/lora.py)"]
    extension.link_tutorials(None, "index", source)
    assert source == [
        "[a](tutorials/made/shapes.md), [b](../tutorials/made/shapes.md), [c](../examples/lora.py)"
    ]


@pytest.mark.extras
def test_numbers_of_tables_are_not_parted(extension: ModuleType) -> None:
    kept = extension._UNIT.sub("_", "74 ms ± 3 % of 3 runs, ≥ 8×, 2,051 MB, 3 scenes")
    assert kept == "74_ms ±_3_% of 3 runs, ≥_8×, 2,051_MB, 3 scenes"


@pytest.mark.extras
def test_summary_of_a_model_is_not_shown(extension: ModuleType) -> None:
    told = (
        "┏━━━┳━━━━━━┓\n┃   ┃ Name ┃\n┡━━━╇━━━━━━┩\n│ 0 │ pool │\n└───┴──────┘\n"
        "Trainable params: 3\nTotal estimated model params size: 0\nModules in train mode: 9\n"
        "Total FLOPs: 0\nTotally new\nrun folder: runs/demo/1\n"
    )
    assert extension._shown(told) == "Totally new\nrun folder: runs/demo/1"
