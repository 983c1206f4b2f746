"""Samples in and out over the network: Prometheus, OpenTelemetry, events of runs, behind one guarded server."""
