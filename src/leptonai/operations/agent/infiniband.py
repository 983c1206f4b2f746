"""InfiniBand and RoCE ports: traffic, state, rate and the counters of errors."""

from __future__ import annotations

import re
from pathlib import Path

from leptonai.operations.agent.sensors import FilesSource
from leptonai.operations.agent.source import Absent, KeptFile, Place, Reading, Source, read_word

_BYTES_PER_WORD = 4  # port data counters count words of four bytes (IBA specification, PortCounters)
_BYTES_PER_SECOND_PER_GBIT = 125_000_000
COUNTERS: tuple[tuple[str, str, float], ...] = (
    # file under counters/, metric without its prefix, factor
    ("port_rcv_data", "port_data_received_bytes_total", _BYTES_PER_WORD),
    ("port_xmit_data", "port_data_transmitted_bytes_total", _BYTES_PER_WORD),
    ("port_rcv_packets", "port_packets_received_total", 1),
    ("port_xmit_packets", "port_packets_transmitted_total", 1),
    ("link_downed", "link_downed_total", 1),
    ("link_error_recovery", "link_error_recovery_total", 1),
    ("symbol_error", "symbol_error_total", 1),
    ("port_rcv_errors", "port_errors_received_total", 1),
    ("port_rcv_remote_physical_errors", "port_receive_remote_physical_errors_total", 1),
    ("port_rcv_switch_relay_errors", "port_receive_switch_relay_errors_total", 1),
    ("port_xmit_discards", "port_discards_transmitted_total", 1),
    ("port_rcv_constraint_errors", "port_constraint_errors_received_total", 1),
    ("port_xmit_constraint_errors", "port_constraint_errors_transmitted_total", 1),
    ("port_xmit_wait", "port_transmit_wait_total", 1),
    ("local_link_integrity_errors", "local_link_integrity_errors_total", 1),
    ("excessive_buffer_overrun_errors", "excessive_buffer_overrun_errors_total", 1),
    ("VL15_dropped", "vl15_dropped_total", 1),
)


def parse_state(text: str) -> float:
    """The number before the colon of a port's state.

    >>> parse_state("4: ACTIVE\\n")
    4.0
    """
    return float(text.partition(":")[0])


def parse_rate(text: str) -> float:
    """Bytes a second of a port's rate.

    >>> parse_rate("400 Gb/sec (4X NDR)\\n")
    50000000000.0
    """
    match = re.match(r"\s*([0-9.]+) Gb/sec", text)
    return float(match[1]) * _BYTES_PER_SECOND_PER_GBIT if match else 0.0


class InfinibandSource:
    """Reads the ports under ``/sys/class/infiniband``."""

    name = "infiniband"
    interval_seconds = 0.0

    def __init__(self, place: Place, ports: list[Path]) -> None:
        self._counters: list[tuple[int, KeptFile, float]] = []
        self._states: list[tuple[int, KeptFile]] = []
        self._rates: list[tuple[int, KeptFile]] = []
        for port in ports:
            labels = {"device": port.parent.parent.name, "port": port.name}
            for file, name, factor in COUNTERS:
                if (port / "counters" / file).exists():
                    key = place.table.key(f"node_infiniband_{name}", **labels)
                    self._counters.append((key, KeptFile(port / "counters" / file), factor))
            for file, name in (("state", "state_id"), ("phys_state", "physical_state_id")):
                if read_word(port / file):
                    key = place.table.key(f"node_infiniband_{name}", **labels)
                    self._states.append((key, KeptFile(port / file)))
            if read_word(port / "rate"):
                key = place.table.key("node_infiniband_rate_bytes_per_second", **labels)
                self._rates.append((key, KeptFile(port / "rate")))
        self._files = FilesSource("counters", self._counters)

    def read(self, out: list[Reading]) -> None:
        self._files.read(out)
        out.extend((key, parse_state(file.read())) for key, file in self._states)
        out.extend((key, parse_rate(file.read())) for key, file in self._rates)

    def close(self) -> None:
        self._files.close()
        for _, file in (*self._states, *self._rates):
            file.close()


def open_infiniband(place: Place) -> Source | Absent:
    """The ports, where there are any."""
    ports = sorted((place.sys / "class/infiniband").glob("*/ports/*"))
    if not ports:
        return Absent("infiniband", "no port (/sys/class/infiniband)")
    try:
        return InfinibandSource(place, ports)
    except OSError as error:
        return Absent("infiniband", f"cannot be read: {error.strerror}")
