"""Disks: requests and bytes of each block device, and the space of each local file system."""

from __future__ import annotations

import os
from dataclasses import dataclass

from leptonai.operations.agent.source import Absent, KeptFile, Place, Reading, Source

_SECTOR_BYTES = 512  # of /proc/diskstats, whatever the device's own sector is
_MS_PER_SECOND = 1000.0
_COLUMNS: tuple[tuple[int, str, float], ...] = (
    # column of /proc/diskstats, metric, factor to its unit
    (3, "node_disk_reads_completed_total", 1.0),
    (5, "node_disk_read_bytes_total", _SECTOR_BYTES),
    (6, "node_disk_read_time_seconds_total", 1 / _MS_PER_SECOND),
    (7, "node_disk_writes_completed_total", 1.0),
    (9, "node_disk_written_bytes_total", _SECTOR_BYTES),
    (10, "node_disk_write_time_seconds_total", 1 / _MS_PER_SECOND),
    (11, "node_disk_io_now", 1.0),
    (12, "node_disk_io_time_seconds_total", 1 / _MS_PER_SECOND),
    (13, "node_disk_io_time_weighted_seconds_total", 1 / _MS_PER_SECOND),
)
LOCAL_TYPES = frozenset(
    (
        "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs", "ntfs3", "overlay",
        "reiserfs", "tmpfs", "vfat", "xfs", "zfs",
    )
)  # fmt: skip
"""Asking a network file system for its space can hang for ever when the server is gone; these cannot."""
_SPACE_SECONDS = (
    15.0  # space changes slowly; a file system fills within a minute at worst, not within a second
)
_QUIET_MOUNTS = ("/proc", "/sys", "/dev", "/run", "/snap", "/var/lib/docker", "/var/lib/containerd")
_MAX_MOUNTS = 64  # a node with thousands of container mounts must not cost thousands of series


def parse_diskstats(text: str) -> dict[str, list[float]]:
    """For each whole device that ever worked, its values in the order of the metrics.

    >>> line = " 259 0 nvme0n1 10 0 80 4 20 0 160 8 1 9 12 0 0 0 0\\n"
    >>> parse_diskstats(line)["nvme0n1"][:3]
    [10.0, 40960, 0.004]
    """
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 14 and not words[2].startswith(("loop", "ram", "zram", "sr", "fd")):
            if words[3] == "0" and words[7] == "0":
                continue
            found[words[2]] = [int(words[column]) * factor for column, _, factor in _COLUMNS]
    return found


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system."""

    device: str
    mountpoint: str
    fstype: str
    readonly: bool


def parse_mounts(text: str) -> list[Mount]:
    """Local file systems of ``/proc/self/mounts``, each device once, at its first place.

    >>> parse_mounts("/dev/sda1 / ext4 rw,noatime 0 0\\nserver:/x /mnt nfs4 rw 0 0\\n")
    [Mount(device='/dev/sda1', mountpoint='/', fstype='ext4', readonly=False)]
    """
    found: dict[str, Mount] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 4 or words[2] not in LOCAL_TYPES:
            continue
        mountpoint = words[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        quiet = any(mountpoint == each or mountpoint.startswith(each + "/") for each in _QUIET_MOUNTS)
        if quiet and mountpoint != "/dev/shm":  # where workers' shared memory lives
            continue
        once = mountpoint if words[0] in ("tmpfs", "overlay", "none", "shm") else words[0]
        found.setdefault(once, Mount(words[0], mountpoint, words[2], "ro" in words[3].split(",")))
    return list(found.values())[:_MAX_MOUNTS]


class DiskSource:
    """Reads ``/proc/diskstats``; partitions are left out where ``/sys/block`` tells them from whole devices."""

    name = "disk"
    interval_seconds = 0.0

    def __init__(self, place: Place) -> None:
        self._table = place.table
        self._file = KeptFile(place.proc / "diskstats")
        self._blocks = place.sys / "block"
        self._keys: dict[str, list[int]] = {}

    def read(self, out: list[Reading]) -> None:
        for device, values in parse_diskstats(self._file.read()).items():
            keys = self._keys.get(device)
            if keys is None:
                whole = not self._blocks.exists() or (self._blocks / device).exists()
                keys = [self._table.key(name, device=device) for _, name, _ in _COLUMNS] if whole else []
                self._keys[device] = keys
            if keys:
                out.extend(zip(keys, values, strict=True))

    def close(self) -> None:
        self._file.close()


class SpaceSource:
    """Asks each local file system for its space."""

    name = "filesystem"
    interval_seconds = _SPACE_SECONDS

    def __init__(self, place: Place) -> None:
        self._table = place.table
        self._file = KeptFile(place.proc / "self/mounts")

    def read(self, out: list[Reading]) -> None:
        for mount in parse_mounts(self._file.read()):
            try:
                stat = os.statvfs(mount.mountpoint)
            except OSError:
                continue  # unmounted since, or hidden from us
            if stat.f_blocks == 0:
                continue
            values = {
                "size_bytes": stat.f_blocks * stat.f_frsize,
                "free_bytes": stat.f_bfree * stat.f_frsize,
                "avail_bytes": stat.f_bavail * stat.f_frsize,
                "files": stat.f_files,
                "files_free": stat.f_ffree,
                "readonly": int(mount.readonly),
            }
            labels = {"device": mount.device, "mountpoint": mount.mountpoint, "fstype": mount.fstype}
            out.extend(
                (self._table.key(f"node_filesystem_{name}", **labels), float(value))
                for name, value in values.items()
            )

    def close(self) -> None:
        self._file.close()


def open_disks(place: Place) -> Source | Absent:
    """Block devices."""
    try:
        return DiskSource(place)
    except OSError as error:
        return Absent("disk", f"/proc/diskstats: {error.strerror}")


def open_space(place: Place) -> Source | Absent:
    """File systems."""
    try:
        return SpaceSource(place)
    except OSError as error:
        return Absent("filesystem", f"/proc/self/mounts: {error.strerror}")
