"""How devices are joined: graphs of devices, switches and links, and what they carry."""
