"""What is good and bad about a machine, decided by pure functions over what was measured."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leptonai.core.units import format_bytes

State = Literal["ok", "warn", "bad"]

GIB = 2**30
# Autotune's float32/bfloat16 choice rests on these; the rest of /proc/cpuinfo would be noise.
SPEED_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_MIN_OPEN_FILES = 1024
_MIN_SHARED_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report; ``advice`` says what to do where ``state`` is not ok."""

    name: str
    value: str
    state: State = "ok"
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"name": self.name, "value": self.value, "state": self.state, "advice": self.advice}


def on_python(version: tuple[int, int, int]) -> Finding:
    """The interpreter must be 3.11 or newer."""
    text = ".".join(map(str, version))
    if version < (3, 11, 0):
        return Finding(name="Python", value=text, state="bad", advice="install Python 3.11 or newer")
    return Finding(name="Python", value=text)


def on_system(system: str, release: str) -> Finding:
    """Supervision of workers rests on Linux."""
    value = f"{system} {release}"
    if system != "Linux":
        return Finding(name="system", value=value, state="bad", advice="use Linux: workers need it")
    return Finding(name="system", value=value)


def on_cpu(model: str, flags: Iterable[str]) -> Finding:
    """Model and the features that decide how fast a step can be.

    >>> on_cpu("Some CPU", ["fpu", "avx2"]).value
    'Some CPU: avx2'
    """
    have = set(flags)
    features = [name for name in SPEED_FEATURES if name in have]
    value = f"{model}: {' '.join(features) or 'no vector features known'}"
    if not have & {"avx2", "asimd"}:
        return Finding(name="CPU", value=value, state="warn", advice="expect slow training without AVX2")
    return Finding(name="CPU", value=value)


def on_cores(*, usable: int, machine: int, quota: float | None) -> Finding:
    """Cores this process may use; a container's quota below them makes pinned threads wait for each other."""
    value = f"{usable} of {machine} usable" + (f", quota {quota:g}" if quota is not None else "")
    if quota is not None and quota < usable:
        advice = f"use at most {max(1, int(quota))} worker threads in all, or raise the container's quota"
        return Finding(name="cores", value=value, state="warn", advice=advice)
    return Finding(name="cores", value=value)


def on_memory(*, free_bytes: int, total_bytes: int) -> Finding:
    """Memory that is left for a run."""
    value = f"{format_bytes(free_bytes)} free of {format_bytes(total_bytes)}"
    if free_bytes < GIB // 2:
        advice = "free some memory: a worker with PyTorch alone takes about 300 MiB"
        return Finding(name="memory", value=value, state="bad", advice=advice)
    if free_bytes < 2 * GIB:
        return Finding(name="memory", value=value, state="warn", advice="expect room for small models only")
    return Finding(name="memory", value=value)


def on_shared_memory(total_bytes: int | None) -> Finding:
    """/dev/shm, where frameworks keep what processes share."""
    if total_bytes is None:
        advice = "mount a tmpfs on /dev/shm"
        return Finding(name="shared memory", value="no /dev/shm", state="bad", advice=advice)
    value = f"{format_bytes(total_bytes)} in /dev/shm"
    if total_bytes < _MIN_SHARED_BYTES:
        advice = "give the container more, such as docker run --shm-size=1g"
        return Finding(name="shared memory", value=value, state="warn", advice=advice)
    return Finding(name="shared memory", value=value)


def on_disk(where: str, free_bytes: int) -> Finding:
    """Space for run directories and data sets."""
    name, value = f"disk at {where}", f"{format_bytes(free_bytes)} free"
    if free_bytes < GIB // 4:
        return Finding(name=name, value=value, state="bad", advice="free some space for checkpoints")
    if free_bytes < 2 * GIB:
        return Finding(name=name, value=value, state="warn", advice="free some space before a long run")
    return Finding(name=name, value=value)


def on_open_files(limit: int) -> Finding:
    """The limit on open files of one process."""
    value = f"{limit} in one process"
    if limit < _MIN_OPEN_FILES:
        advice = f"raise it: ulimit -n {_MIN_OPEN_FILES}"
        return Finding(name="open files", value=value, state="warn", advice=advice)
    return Finding(name="open files", value=value)


def on_package(name: str, version: str | None, *, extra: str | None = None) -> Finding:
    """A package that must be there, or may be when it belongs to an extra."""
    if version is not None:
        return Finding(name=name, value=version)
    if extra is not None:
        return Finding(name=name, value=f"not installed (optional: pip install 'openlepton[{extra}]')")
    return Finding(name=name, value="not installed", state="bad", advice="pip install openlepton")


def on_directory(name: str, path: str, *, writable: bool) -> Finding:
    """A directory that commands write to."""
    if writable:
        return Finding(name=name, value=path)
    advice = "make it writable, or name another with --home or LEPTON_HOME"
    return Finding(name=name, value=f"{path} cannot be written", state="bad", advice=advice)


def on_loopback(reason: str | None) -> Finding:
    """Workers on one machine meet on the loopback interface."""
    if reason is None:
        return Finding(name="loopback", value="127.0.0.1 works")
    advice = "bring the interface up: ip link set lo up"
    return Finding(name="loopback", value=f"127.0.0.1: {reason}", state="bad", advice=advice)


def on_listeners(addresses: Sequence[tuple[str, int]]) -> Finding:
    """Sockets on which this user's lepton processes listen; none may be reachable from outside.

    >>> on_listeners([("127.0.0.1", 6006), ("0.0.0.0", 29500)]).state
    'bad'
    """
    if not addresses:
        return Finding(name="listening", value="nothing of lepton listens")
    value = ", ".join(f"{host}:{port}" for host, port in addresses)
    outside = [f"{host}:{port}" for host, port in addresses if not ipaddress.ip_address(host).is_loopback]
    if outside:
        advice = f"end the process that listens on {outside[0]}: it can be reached from other machines"
        return Finding(name="listening", value=value, state="bad", advice=advice)
    return Finding(name="listening", value=value)


def on_gpus(names: Sequence[str], *, torch_sees: int | None) -> Finding:
    """GPUs of the machine, and whether PyTorch can use them.

    Args:
        names: as the driver tells them.
        torch_sees: how many PyTorch can use; None: PyTorch could not be asked.
    """
    if not names:
        return Finding(name="GPUs", value="none; runs use the CPU")
    value = ", ".join(names)
    if torch_sees is not None and torch_sees < len(names):
        advice = "install a PyTorch build for this driver's CUDA version"
        value += f" ({torch_sees} usable from PyTorch)"
        return Finding(name="GPUs", value=value, state="warn", advice=advice)
    return Finding(name="GPUs", value=value)


def on_torch(version: str | None, problem: str | None) -> Finding:
    """PyTorch must not only be installed but load."""
    if version is None or problem is None:
        return on_package("torch", version)
    advice = "reinstall it: pip install --force-reinstall torch"
    return Finding(name="torch", value=f"{version} does not load: {problem}", state="bad", advice=advice)
