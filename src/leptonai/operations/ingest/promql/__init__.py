"""A useful part of PromQL over the store, with the answers that Prometheus gives; the rest is refused by name."""
