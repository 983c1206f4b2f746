"""How grave something is, in colours, and what would help, in words."""

from __future__ import annotations

from leptonai.operations.alarms import Severity

STYLES: dict[Severity, str] = {"info": "", "warning": "yellow", "critical": "red", "fatal": "bold red"}
DO: dict[str, str] = {
    "none": "nothing", "check_job": "look at the job", "restart_worker": "restart the worker",
    "reset_device": "reset the device", "reboot_node": "reboot the node",
    "inspect_hardware": "have the hardware looked at",
}  # fmt: skip
