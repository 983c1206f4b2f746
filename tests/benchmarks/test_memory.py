from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.memory import PeakMemory, tree_pss_bytes

MEBIBYTE = 2**20
# Each process touches the given bytes, starts the next, and waits until its standard input closes.
PARENT = """
import subprocess, sys
block = bytearray(int(sys.argv[1]) * 2**20)
child = None
if len(sys.argv) > 2:
    words = [sys.executable, "-c", sys.argv[2], sys.argv[1]]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
if child is not None:
    child.stdin.close()
    child.wait()
"""


def grown(mebibytes: int, *, with_child: bool) -> tuple[int, int]:
    """(PSS now, peak seen) of a process tree in which each process holds so many MiB."""
    words = [sys.executable, "-c", PARENT, str(mebibytes), *([PARENT] if with_child else [])]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        with PeakMemory(process.pid) as memory:
            now = tree_pss_bytes(process.pid)
        process.stdin.close()
        process.wait(timeout=30)
    return now, memory.peak_bytes


def test_a_known_child_is_measured_within_the_interpreters_own_size() -> None:
    now, peak = grown(64, with_child=False)
    assert 64 * MEBIBYTE < now < 100 * MEBIBYTE
    assert peak >= 64 * MEBIBYTE


def test_grandchildren_count() -> None:
    now, peak = grown(48, with_child=True)
    assert now > 2 * 48 * MEBIBYTE
    assert peak > 2 * 48 * MEBIBYTE


def test_a_process_that_is_gone_has_no_memory() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=30)
    assert tree_pss_bytes(ended.pid) == 0


def test_shared_pages_are_counted_once() -> None:
    # A forked child shares all pages with its parent until one of them writes.
    program = (
        "import os, sys; block = bytearray(64 * 2**20); child = os.fork()\n"
        "if child == 0: print('ready', flush=True)\n"
        "sys.stdin.read()\n"
        "if child: os.waitpid(child, 0)"
    )
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert 64 * MEBIBYTE < tree_pss_bytes(process.pid) < 100 * MEBIBYTE
        process.stdin.close()
        process.wait(timeout=30)


def test_this_process_has_memory() -> None:
    assert tree_pss_bytes(os.getpid()) > MEBIBYTE
