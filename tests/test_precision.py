"""Half precision on processors that are slow in it: measured, warned of, never shipped."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measured_precision import set_slowdown

from itmkit import precision
from itmkit.configs import config_names, load_config
from itmkit.nn import CrossAttentionSimilarity
from itmkit.precision import SLOW, cpu_slowdown, warn_if_slow_on_cpu

__all__ = ["set_slowdown"]
pytestmark = pytest.mark.filterwarnings("default:.* is slow on this processor")


def told() -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_slow_on_cpu("an option", torch.bfloat16)
    return [str(one.message) for one in caught]


def test_a_processor_that_is_slower_is_warned_of_with_the_ratio(
    set_slowdown: Callable[[float], None],
) -> None:
    set_slowdown(8.25)
    message = (
        "an option is slow on this processor: a Linear layer takes 8.2 times as long in bfloat16 "
        "as in float32"
    )
    assert told() == [message]
    assert told() == [message]  # from the one measurement


@pytest.mark.parametrize("slowdown", [0.6, 1.0, 1.1])
def test_a_processor_that_is_not_slower_is_not(
    set_slowdown: Callable[[float], None], slowdown: float
) -> None:
    set_slowdown(slowdown)
    assert told() == []


def test_measuring_leaves_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        cpu_slowdown.cache_clear()
        assert cpu_slowdown(torch.bfloat16) > 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available(),
    reason="oneDNN can be kept from instructions on x86-64 alone",
)
def test_without_bf16_instructions_it_is_measured_to_be_slow() -> None:
    command = "from itmkit.precision import *; print(cpu_slowdown(torch.bfloat16))"
    found = subprocess.check_output(
        [sys.executable, "-c", command],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        cwd=Path(precision.__file__).parents[1],
        text=True,
    )
    assert float(found) > SLOW


@pytest.mark.parametrize("name", config_names())
def test_no_shipped_configuration_asks_for_bf16(name: str) -> None:
    trainer = load_config(name)["trainer"]
    assert "bf16" not in str(trainer.get("precision"))


def test_bf16_products_are_warned_of(set_slowdown: Callable[[float], None]) -> None:
    set_slowdown(170.0)
    similarity = CrossAttentionSimilarity(bf16_products=True)
    image, text = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    with pytest.warns(
        UserWarning, match=r"bf16_products is slow on this processor: .* 170\.0 times"
    ):
        similarity(image, text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        similarity(image.requires_grad_(), text)  # in fp32
