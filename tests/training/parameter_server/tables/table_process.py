"""A server process of tables for tests: serves shared memory until it is killed."""

from __future__ import annotations

import json
import select
import sys

from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.tables.memory import TableMemory, TableShape
from leptonai.training.parameter_server.tables.service import TableService
from leptonai.training.parameter_server.tables.spec import table_from_json
from leptonai.training.parameter_server.tables.storage import TableStorage


def main() -> None:
    """Serve the tables named in the arguments: JSON with fds."""
    about = json.loads(sys.argv[1])
    table = table_from_json(about["table"])
    bell, worker_bells = Bell(about["bell"]), [Bell(fd) for fd in about["worker_bells"]]
    shape = TableShape(table=table, num_slots=len(worker_bells))
    storage = TableStorage(TableMemory.attach(about["fd"], shape))
    service = TableService([storage], bells=worker_bells)
    print("ready", flush=True)
    while True:
        if not service.serve_pending():
            select.select([bell.fd], [], [], 0.01)
            bell.quiet()


if __name__ == "__main__":
    main()
