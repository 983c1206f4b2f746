"""Measures this machine for ``lepton doctor``; judgements are in :mod:`leptonai.cli.findings`. Linux only."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leptonai.cli import findings
from leptonai.cli.findings import Finding

_PROBE_SECONDS = 60.0
# Asked in a process of its own: loading PyTorch takes seconds and may crash on a broken driver.
_TORCH_PROBE = """
import json, torch
print(json.dumps({"gpus": torch.cuda.device_count(), "sum": float(torch.ones(2).sum())}))
"""


def examine(home: Path) -> Iterator[Finding]:
    """Every finding, in the order of the report.

    Args:
        home: the home directory that commands would use; not made if it is not there.
    """
    yield findings.on_system(platform.system(), platform.release())
    yield findings.on_python((sys.version_info[0], sys.version_info[1], sys.version_info[2]))
    yield findings.on_cpu(*cpu_model_and_flags(_read("/proc/cpuinfo")))
    usable = len(os.sched_getaffinity(0))
    yield findings.on_cores(usable=usable, machine=os.cpu_count() or usable, quota=_quota())
    yield _memory()
    yield findings.on_shared_memory(_total_bytes("/dev/shm"))
    yield findings.on_disk("current directory", shutil.disk_usage(Path.cwd()).free)
    yield findings.on_disk("home", shutil.disk_usage(existing_parent(home)).free)
    yield findings.on_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield from _frameworks()
    yield findings.on_loopback(_loopback_problem())
    yield findings.on_listeners(listening_addresses())
    yield findings.on_directory("home", str(home), writable=is_writable(existing_parent(home)))


def cpu_model_and_flags(cpuinfo: str) -> tuple[str, list[str]]:
    """Model and features of the first CPU in the text of /proc/cpuinfo; ARM calls them Features.

    >>> cpu_model_and_flags("model name\\t: Some CPU\\nflags\\t\\t: fpu avx2\\n")
    ('Some CPU', ['fpu', 'avx2'])
    """
    values: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip(), value.strip())
    flags = values.get("flags") or values.get("Features") or ""
    return values.get("model name") or platform.machine(), flags.split()


def quota_of(cpu_max: str) -> float | None:
    """Cores a control group allows, from the text of its ``cpu.max``; None: as many as there are.

    >>> quota_of("150000 100000"), quota_of("max 100000"), quota_of("")
    (1.5, None, None)
    """
    words = cpu_max.split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def is_writable(folder: Path) -> bool:
    """Whether a file can really be made there: permissions alone do not tell of a read-only disk."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def listening_addresses() -> list[tuple[str, int]]:
    """TCP addresses on which this user's lepton processes listen, sorted."""
    import psutil

    found: set[tuple[str, int]] = set()
    for process in psutil.process_iter(["uids", "cmdline"]):
        uids, words = process.info["uids"], process.info["cmdline"] or []
        if uids is None or uids.real != os.getuid() or not is_lepton(words):
            continue
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        listening = [each for each in connections if each.status == psutil.CONN_LISTEN]
        found |= {(each.laddr.ip, each.laddr.port) for each in listening}
    return sorted(found)


def is_lepton(command_line: Sequence[str]) -> bool:
    """Whether a command line is that of our command or of one of its workers.

    >>> is_lepton(["/usr/bin/python3", "/opt/bin/lepton", "train"]), is_lepton(["vim", "leptonai.txt"])
    (True, False)
    """
    for place, word in enumerate(command_line[:4]):
        if Path(word).name == "lepton" or (word.startswith("leptonai.") and command_line[place - 1] == "-m"):
            return True
    return False


def _frameworks() -> Iterator[Finding]:
    version = _version("torch")
    probe = _ask_torch() if version else {}
    yield findings.on_torch(version, probe.get("problem"))
    yield findings.on_gpus(_gpu_names(), torch_sees=probe.get("gpus"))
    yield findings.on_package("numpy", _version("numpy"))
    tensorflow = _version("tensorflow") or _version("tensorflow-cpu")
    yield findings.on_package("tensorflow", tensorflow, extra="tensorflow")
    yield findings.on_package("keras", _version("keras"), extra="tensorflow")
    yield findings.on_package("tensorboard", _version("tensorboard"))


def _ask_torch() -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"no answer within {_PROBE_SECONDS:.0f} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"problem": lines[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _gpu_names() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=_PROBE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        total = min(total, int(limit))
        free = min(free, max(0, int(limit) - int(used)))
    return findings.on_memory(free_bytes=free, total_bytes=total)


def _quota() -> float | None:
    return quota_of(_read("/sys/fs/cgroup/cpu.max"))


def _total_bytes(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def _loopback_problem() -> str | None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
