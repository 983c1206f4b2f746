"""Known faults as data: what a message means, how bad it is, and what to do."""
