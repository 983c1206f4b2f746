"""What a collector knows right now, asked over its query API: nodes, and runs as they go."""

from __future__ import annotations

import http.client
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leptonai.core.errors import Fault, InputError

TIMEOUT_SECONDS = 5.0
MOST_ANSWER_BYTES = 8 << 20
NODE_QUERIES: Mapping[str, str] = {
    "up": "max by (node) (lepton_agent_up)",
    "cpu": 'sum by (node) (rate(node_cpu_seconds_total{mode!="idle",mode!="iowait"}[1m])) '
    "/ sum by (node) (rate(node_cpu_seconds_total[1m]))",
    "memory": "max by (node) (1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)",
    "read": "sum by (node) (rate(node_disk_read_bytes_total[1m]))",
    "written": "sum by (node) (rate(node_disk_written_bytes_total[1m]))",
    "received": "sum by (node) (rate(node_network_receive_bytes_total[1m]))",
    "sent": "sum by (node) (rate(node_network_transmit_bytes_total[1m]))",
    "gpu": "avg by (node) (lepton_gpu_utilization_ratio)",
    "gpu_heat": "max by (node) (lepton_gpu_temperature_celsius)",
}
RUN_QUERIES: Mapping[str, str] = {
    "step": "max by (run_id) (lepton_rank_step)",
    "rate": "max by (run_id) (lepton_run_examples_per_second)",
    "loss": "max by (run_id) (lepton_run_loss)",
    "workers": "max by (run_id) (lepton_run_workers)",
}

Ask = Callable[[str], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Values by node and by run; see :data:`NODE_QUERIES` and :data:`RUN_QUERIES`. What is not known is left out."""

    nodes: Mapping[str, Mapping[str, float]]
    runs: Mapping[str, Mapping[str, float]]


class Reader:
    """Asks a collector.

    Args:
        url: of the collector, http or https.
        token: for reading; empty: none.

    Raises:
        InputError: the address cannot be used.
    """

    def __init__(self, url: str, token: str = "") -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise InputError("the collector's address cannot be used", hint="write it as http://HOST:PORT")
        self._url, self._token = url.rstrip("/"), token

    def live(self) -> Live:
        """What goes on now.

        Raises:
            Fault: it cannot be reached or did not answer as it should.
        """
        return Live(nodes=self._table(NODE_QUERIES, "node"), runs=self._table(RUN_QUERIES, "run_id"))

    def _table(self, queries: Mapping[str, str], label: str) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for column, query in queries.items():
            for name, value in self.ask(query, label).items():
                found.setdefault(name, {})[column] = value
        return found

    def ask(self, query: str, label: str) -> dict[str, float]:
        """The answer to an instant query, by a label."""
        request = urllib.request.Request(
            f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}",
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                rows = json.loads(answer.read(MOST_ANSWER_BYTES))["data"]["result"]
            values = {row["metric"].get(label, ""): float(row["value"][1]) for row in rows}
        except urllib.error.HTTPError as error:
            with error:
                hint = "give --token-file with a read token" if error.code == 401 else None
                raise Fault(f"the collector answered {error.code}", hint=hint) from None
        except (OSError, http.client.HTTPException) as error:
            raise Fault(
                f"the collector could not be reached ({type(error).__name__})",
                hint="is `lepton collector` running?",
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Fault("the collector's answer could not be understood") from None
        return {name: value for name, value in values.items() if name and math.isfinite(value)}
