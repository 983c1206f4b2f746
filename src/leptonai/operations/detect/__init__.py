"""Streaming anomaly detection: evidence for any metric, alarms from it, one machine against its peers."""
