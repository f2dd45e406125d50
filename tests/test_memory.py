from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource
import numpy as np
from itmkit.memory import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 26, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

page_faults()
anew = page_faults()
keep_freed_memory()
page_faults()
kept = page_faults()
print(anew, kept)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back at once")
def test_large_arrays_take_the_memory_of_earlier_ones() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    anew, kept = map(int, done.stdout.split())
    if anew < 16:
        pytest.skip("this libc keeps it anyway")
    assert kept <= anew // 8
