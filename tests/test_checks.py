"""Checks that many places share say where a value is and what it is."""

from __future__ import annotations

import pytest
import torch

from itmkit.checks import InputError, check_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_error_not_finite(dtype, value):
    largest = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    check_finite(largest, str)  # a sum would overflow
    check_finite(largest[:0], str)
    largest[2, 1] = value
    with pytest.raises(InputError, match=rf"^row 7, 1 is {value}; expected a finite number$"):
        check_finite(largest, lambda row, column: f"row {5 + row}, {column}")
    with pytest.raises(InputError, match=rf"^pair 1 is {value}; expected a finite number$"):
        check_finite(largest[2], lambda place: f"pair {place}")
