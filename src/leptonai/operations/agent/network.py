"""Network interfaces: bytes, packets, errors and drops of each, its state, and TCP segments sent again."""

from __future__ import annotations

from pathlib import Path

from leptonai.operations.agent.source import Absent, KeptFile, Place, Reading, Source, read_number, read_word

_COLUMNS: tuple[tuple[int, str], ...] = (
    # column after the colon of /proc/net/dev, metric
    (0, "node_network_receive_bytes_total"),
    (1, "node_network_receive_packets_total"),
    (2, "node_network_receive_errs_total"),
    (3, "node_network_receive_drop_total"),
    (8, "node_network_transmit_bytes_total"),
    (9, "node_network_transmit_packets_total"),
    (10, "node_network_transmit_errs_total"),
    (11, "node_network_transmit_drop_total"),
)
_TCP_COLUMNS = ("OutSegs", "RetransSegs", "InErrs")
_STATE_SECONDS = 5.0  # link state; drivers poll it about as often
_BYTES_PER_SECOND_PER_MBIT = 125_000
_PASSING = ("veth", "cali", "lxc", "docker", "br-", "cni", "flannel", "virbr", "dummy", "tap")
"""Interfaces of containers and bridges: they come and go by the hundred, and what they carry shows elsewhere."""


def parse_net_dev(text: str) -> dict[str, list[float]]:
    """For each interface, its counters in the order of the metrics.

    >>> text = "Inter-| Receive\\n face |bytes\\n  eth0: 9 8 7 6 0 0 0 0 5 4 3 2 0 0 0 0\\n"
    >>> parse_net_dev(text)
    {'eth0': [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]}
    """
    found = {}
    for line in text.splitlines():
        name, colon, tail = line.partition(":")
        name = name.strip()
        if colon and not name.startswith(_PASSING):
            words = tail.split()
            found[name] = [float(words[column]) for column, _ in _COLUMNS]
    return found


def parse_snmp(text: str) -> dict[str, float]:
    """The TCP counters kept of ``/proc/net/snmp``.

    >>> parse_snmp("Tcp: OutSegs RetransSegs InErrs\\nTcp: 100 2 0\\n")
    {'OutSegs': 100.0, 'RetransSegs': 2.0, 'InErrs': 0.0}
    """
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith("Tcp: ")]
    if len(rows) != 2:
        return {}
    found = dict(zip(rows[0], rows[1], strict=False))
    return {name: float(found[name]) for name in _TCP_COLUMNS if name in found}


class NetworkSource:
    """Reads ``/proc/net/dev`` and ``/proc/net/snmp``."""

    name = "network"
    interval_seconds = 0.0

    def __init__(self, place: Place) -> None:
        self._table = place.table
        self._dev = KeptFile(place.proc / "net/dev")
        self._snmp = KeptFile(place.proc / "net/snmp")
        self._keys: dict[str, list[int]] = {}
        self._tcp = {name: place.table.key(f"node_netstat_Tcp_{name}") for name in _TCP_COLUMNS}

    def read(self, out: list[Reading]) -> None:
        for device, values in parse_net_dev(self._dev.read()).items():
            keys = self._keys.get(device)
            if keys is None:
                keys = self._keys[device] = [self._table.key(name, device=device) for _, name in _COLUMNS]
            out.extend(zip(keys, values, strict=True))
        out.extend((self._tcp[name], value) for name, value in parse_snmp(self._snmp.read()).items())

    def close(self) -> None:
        self._dev.close()
        self._snmp.close()


class LinkSource:
    """Reads the state of each interface under ``/sys/class/net``."""

    name = "link"
    interval_seconds = _STATE_SECONDS

    def __init__(self, place: Place) -> None:
        self._table = place.table
        self._folder = place.sys / "class/net"

    def read(self, out: list[Reading]) -> None:
        for folder in sorted(self._folder.iterdir()):
            if folder.name == "lo" or folder.name.startswith(_PASSING) or not folder.is_dir():
                continue
            for name, value in _link_values(folder).items():
                out.append((self._table.key(f"node_network_{name}", device=folder.name), value))

    def close(self) -> None:
        """Nothing stays open."""


def _link_values(folder: Path) -> dict[str, float]:
    values = {"up": float(read_word(folder / "operstate") == "up")}
    numbers = {"carrier": read_number(folder / "carrier"), "speed": read_number(folder / "speed")}
    if numbers["carrier"] is not None:
        values["carrier"] = numbers["carrier"]
    if numbers["speed"] is not None and numbers["speed"] > 0:  # -1: the driver does not know
        values["speed_bytes"] = numbers["speed"] * _BYTES_PER_SECOND_PER_MBIT
    changes = read_number(folder / "carrier_changes")
    if changes is not None:
        values["carrier_changes_total"] = changes
    return values


def open_network(place: Place) -> Source | Absent:
    """Traffic."""
    try:
        return NetworkSource(place)
    except OSError as error:
        return Absent("network", f"/proc/net/dev: {error.strerror}")


def open_links(place: Place) -> Source | Absent:
    """States of the interfaces."""
    if not (place.sys / "class/net").is_dir():
        return Absent("link", "/sys/class/net is missing")
    return LinkSource(place)
