"""Kernels of TensorFlow as they are probed: they run, and what is timed is not optimised away."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow")

# In a process of its own: threads and graph optimisers are set once for a process.
PROGRAM = """
import json
from leptonai.compute.probe_cases import KernelCase, kernel_cases
from leptonai.compute.steady_timing import time_until_steady
from leptonai.training.tensorflow.probe import KerasKernels

kernels = KerasKernels(threads=1)

def seconds(case):
    call, copies = kernels.prepare(case)
    return time_until_steady(call, max_seconds=0.2).seconds / copies

found = {}
for case in kernel_cases(quick=True):
    if case.flops < 2e7 or case.kind == "convolution":
        call, copies = kernels.prepare(case)
        call()
        found.setdefault(case.kind + ("_backward" if case.backward else ""), copies)
depthwise = KernelCase(kind="convolution", dims=(2, 8, 8, 9, 49, 8), backward=True)
kernels.prepare(depthwise)[0]()
times = {str(side): seconds(KernelCase(kind="matmul", dims=(side, side, side))) for side in (128, 512)}
forward, both = kernels.chain(8)
forward(), both()
kernels.empty()()
print(json.dumps({"found": found, "times": times}))
"""


def test_kernels_run_and_take_time() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["found"].keys() >= {
        "matmul", "matmul_backward", "convolution", "convolution_backward", "elementwise", "reduction", "copy",
        "gather", "update_adam", "update_momentum", "batched_matmul",
    }  # fmt: skip
    assert said["found"]["elementwise"] > 1
    # 64 times the work: were the products left out, both would take as long as an empty call.
    assert said["times"]["512"] > 8 * said["times"]["128"] > 0
