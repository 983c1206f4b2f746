"""The walk over a remote-write request in C."""
