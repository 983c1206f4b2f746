"""What the agent's metrics mean: name to kind, unit and help.

Names and units follow node_exporter where it has the metric (so that dashboards and rules made for it work), and
DCGM's notions for accelerators, under our own prefix. Counters only grow, but for restarts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

MetricKind = Literal["gauge", "counter"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: ``unit`` is a base unit in the plural, empty for plain numbers.

    >>> CATALOGUE["node_load1"].kind
    'gauge'
    """

    name: str
    kind: MetricKind
    unit: str
    help: str


_GAUGES: tuple[tuple[str, str, str], ...] = (
    # name, unit, help
    ("lepton_agent_up", "", "1 while the agent lives, 0 once it has said goodbye."),
    ("lepton_agent_expected_gap_seconds", "seconds", "Longest time between two arrivals while all is well."),
    ("lepton_agent_source_up", "", "1 where a source could be read, 0 where it is absent or failed."),
    ("lepton_agent_spool_bytes", "bytes", "Waiting on disk or in memory to be sent."),
    ("lepton_agent_series", "", "Series in the latest sample."),
    ("process_resident_memory_bytes", "bytes", "Resident memory of the agent."),
    ("node_boot_time_seconds", "seconds", "When the node booted, seconds since 1970."),
    ("node_load1", "", "Load average over a minute."),
    ("node_load5", "", "Load average over five minutes."),
    ("node_load15", "", "Load average over fifteen minutes."),
    ("node_procs_running", "", "Processes ready to run."),
    ("node_procs_blocked", "", "Processes that wait for a disk."),
    ("node_filesystem_size_bytes", "bytes", "Size of the file system."),
    ("node_filesystem_free_bytes", "bytes", "Free, counting what is kept for root."),
    ("node_filesystem_avail_bytes", "bytes", "Free to ordinary users."),
    ("node_filesystem_files", "", "Inodes there are."),
    ("node_filesystem_files_free", "", "Inodes free."),
    ("node_filesystem_readonly", "", "1 where the file system is mounted read-only."),
    ("node_disk_io_now", "", "Requests under way."),
    ("node_network_up", "", "1 where the interface is up."),
    ("node_network_carrier", "", "1 where the interface has a signal."),
    ("node_network_speed_bytes", "bytes", "Bytes a second that the interface could carry."),
    ("node_hwmon_temp_celsius", "celsius", "Temperature of a sensor."),
    ("node_hwmon_temp_crit_celsius", "celsius", "Temperature that the sensor's maker calls critical."),
    ("node_hwmon_fan_rpm", "", "Turns of a fan a minute."),
    ("node_hwmon_power_average_watt", "watts", "Power that a sensor measures."),
    ("node_hwmon_in_volts", "volts", "Voltage that a sensor measures."),
    ("node_thermal_zone_temp", "celsius", "Temperature of a zone."),
    ("node_timex_offset_seconds", "seconds", "How far the clock is from its reference."),
    ("node_timex_maxerror_seconds", "seconds", "Most that the clock may be wrong."),
    ("node_timex_estimated_error_seconds", "seconds", "How wrong the kernel thinks the clock to be."),
    ("node_timex_frequency_adjustment_ratio", "ratio", "How the clock's speed is being adjusted."),
    ("node_timex_sync_status", "", "1 where the clock follows a reference."),
    ("lepton_clock_step_seconds", "seconds", "What the wall clock moved beyond the monotonic one."),
    ("lepton_cgroup_memory_bytes", "bytes", "Memory that the agent's control group uses."),
    ("lepton_cgroup_memory_limit_bytes", "bytes", "Most memory that the control group may use."),
    ("lepton_cgroup_cpu_limit_cores", "", "Most cores that the control group may use."),
    ("lepton_cgroup_pids", "", "Tasks in the control group."),
    ("lepton_disk_smart_healthy", "", "1 where the disk calls itself healthy."),
    ("lepton_disk_temperature_celsius", "celsius", "Temperature of the disk."),
    ("lepton_disk_spare_ratio", "ratio", "Spare blocks left, 1 for all."),
    ("lepton_disk_wear_ratio", "ratio", "Rated life used up, over 1 where the disk outlived it."),
    ("lepton_disk_critical_warning", "", "Bits of an NVMe disk's critical warning."),
    ("lepton_disk_attribute_raw", "", "Raw value of a SMART attribute."),
    ("lepton_disk_state_running", "", "1 where the kernel calls the disk running or live."),
    ("node_infiniband_state_id", "", "State of the port: 4 is active."),
    ("node_infiniband_physical_state_id", "", "Physical state of the port: 5 is link up."),
    ("node_infiniband_rate_bytes_per_second", "", "Bytes a second that the port could carry."),
    ("lepton_gpu_lost", "", "1 where the driver has lost the device."),
    ("lepton_gpu_info", "", "1; labels hold the device's name, driver and bus address."),
    ("lepton_gpu_utilization_ratio", "ratio", "Part of the time in which a kernel ran."),
    ("lepton_gpu_memory_utilization_ratio", "ratio", "Part of the time in which memory was read or written."),
    ("lepton_gpu_memory_used_bytes", "bytes", "Device memory in use."),
    ("lepton_gpu_memory_free_bytes", "bytes", "Device memory free."),
    ("lepton_gpu_memory_total_bytes", "bytes", "Device memory there is."),
    ("lepton_gpu_power_watts", "watts", "Power drawn."),
    ("lepton_gpu_power_limit_watts", "watts", "Power that may be drawn."),
    ("lepton_gpu_temperature_celsius", "celsius", "Temperature of the device."),
    ("lepton_gpu_memory_temperature_celsius", "celsius", "Temperature of the device's memory."),
    ("lepton_gpu_fan_ratio", "ratio", "Speed of the fan, 1 for full."),
    ("lepton_gpu_sm_clock_hertz", "hertz", "Clock of the processors."),
    ("lepton_gpu_memory_clock_hertz", "hertz", "Clock of the memory."),
    ("lepton_gpu_throttled", "", "1 where the clocks are held down for the reason."),
    ("lepton_gpu_retired_pages", "", "Memory pages taken out of use."),
    ("lepton_gpu_retired_pages_pending", "", "1 where pages go out of use at the next reset."),
    ("lepton_gpu_remapped_rows", "", "Memory rows replaced by spare ones."),
    ("lepton_gpu_remapped_rows_pending", "", "1 where rows are replaced at the next reset."),
    ("lepton_gpu_remapped_rows_failed", "", "1 where a row could not be replaced."),
    ("lepton_gpu_ecc_enabled", "", "1 where memory errors are corrected."),
    ("lepton_gpu_nvlink_up", "", "1 where the link is active."),
    ("lepton_gpu_processes", "", "Processes that compute on the device."),
    ("lepton_gpu_process_memory_bytes", "bytes", "Device memory of a process."),
    ("lepton_rank_step", "", "Optimiser steps done."),
    ("lepton_rank_step_seconds", "seconds", "Wall time of a step."),
    ("lepton_rank_compute_seconds", "seconds", "Time a rank computed in a step, before it waited for others."),
    ("lepton_rank_exchange_seconds", "seconds", "Time a rank exchanged gradients in a step."),
    ("lepton_run_phase_seconds", "seconds", "Time one worker spent in a phase of a step."),
    ("lepton_run_loss", "", "Training loss."),
    ("lepton_run_gradient_norm", "", "Norm of the gradient."),
    ("lepton_run_learning_rate", "", "Learning rate."),
    ("lepton_run_examples_per_second", "", "Training examples a second, all workers together."),
    ("lepton_run_workers", "", "Workers of the run."),
    ("lepton_run_clock_step", "", "Steps that a worker of a parameter server has done."),
    ("lepton_run_staleness_mean", "", "Mean updates that others made between read and apply."),
    ("lepton_run_dropped_updates", "", "Updates so far that came too late to count."),
    ("lepton_run_refused_updates", "", "Updates so far that were not finite."),
    ("lepton_run_queue_depth", "", "Entries that wait in a queue."),
    ("lepton_run_staged_bytes", "bytes", "Bytes staged and not yet taken."),
    ("lepton_run_metric", "", "A metric of an evaluation."),
)  # fmt: skip

_COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("process_cpu_seconds_total", "seconds", "Processor time of the agent."),
    ("lepton_agent_samples_total", "", "Samples taken."),
    ("lepton_agent_sent_items_total", "", "Samples and log records that the collector took."),
    ("lepton_agent_dropped_items_total", "", "Samples and log records lost, by reason."),
    ("lepton_agent_send_failures_total", "", "Attempts to send that failed."),
    ("lepton_agent_late_ticks_total", "", "Samples skipped because the one before took too long."),
    ("lepton_agent_log_records_total", "", "Kernel messages and device events read."),
    ("node_cpu_seconds_total", "seconds", "Time the processors spent in each mode."),
    ("node_context_switches_total", "", "Context switches."),
    ("node_intr_total", "", "Interrupts served."),
    ("node_forks_total", "", "Processes started."),
    ("node_pressure_cpu_waiting_seconds_total", "seconds", "Time some task waited for a processor."),
    ("node_pressure_io_waiting_seconds_total", "seconds", "Time some task waited for a disk."),
    ("node_pressure_io_stalled_seconds_total", "seconds", "Time all tasks waited for a disk."),
    ("node_pressure_memory_waiting_seconds_total", "seconds", "Time some task waited for memory."),
    ("node_pressure_memory_stalled_seconds_total", "seconds", "Time all tasks waited for memory."),
    ("node_vmstat_pswpin", "", "Pages read from swap."),
    ("node_vmstat_pswpout", "", "Pages written to swap."),
    ("node_vmstat_pgmajfault", "", "Page faults that needed a disk."),
    ("node_vmstat_oom_kill", "", "Processes killed for want of memory."),
    ("node_edac_correctable_errors_total", "", "Memory errors corrected, by controller."),
    ("node_edac_uncorrectable_errors_total", "", "Memory errors that could not be corrected, by controller."),
    ("node_disk_reads_completed_total", "", "Reads done."),
    ("node_disk_read_bytes_total", "bytes", "Bytes read."),
    ("node_disk_read_time_seconds_total", "seconds", "Time that reads took, together."),
    ("node_disk_writes_completed_total", "", "Writes done."),
    ("node_disk_written_bytes_total", "bytes", "Bytes written."),
    ("node_disk_write_time_seconds_total", "seconds", "Time that writes took, together."),
    ("node_disk_io_time_seconds_total", "seconds", "Time in which a request was under way."),
    ("node_disk_io_time_weighted_seconds_total", "seconds", "The same, weighted by requests under way."),
    ("node_network_receive_bytes_total", "bytes", "Bytes received."),
    ("node_network_receive_packets_total", "", "Packets received."),
    ("node_network_receive_errs_total", "", "Packets received with errors."),
    ("node_network_receive_drop_total", "", "Packets received and dropped."),
    ("node_network_transmit_bytes_total", "bytes", "Bytes sent."),
    ("node_network_transmit_packets_total", "", "Packets sent."),
    ("node_network_transmit_errs_total", "", "Packets that could not be sent."),
    ("node_network_transmit_drop_total", "", "Packets dropped before they were sent."),
    ("node_network_carrier_changes_total", "", "Times the interface's signal came or went."),
    ("node_netstat_Tcp_OutSegs", "", "TCP segments sent."),
    ("node_netstat_Tcp_RetransSegs", "", "TCP segments sent again."),
    ("node_netstat_Tcp_InErrs", "", "TCP segments received with errors."),
    ("lepton_clock_steps_total", "", "Times the wall clock jumped against the monotonic one."),
    ("lepton_cgroup_oom_kills_total", "", "Processes of the control group killed for want of memory."),
    ("lepton_cgroup_cpu_throttled_seconds_total", "seconds", "Time the control group was held back."),
    ("lepton_cgroup_cpu_seconds_total", "seconds", "Processor time of the control group."),
    ("lepton_disk_power_on_seconds_total", "seconds", "Time the disk has been on in its life."),
    ("lepton_disk_media_errors_total", "", "Errors of the disk's medium in its life."),
    ("lepton_disk_io_errors_total", "", "Requests that the kernel saw fail."),
    ("node_infiniband_port_data_received_bytes_total", "bytes", "Bytes received by the port."),
    ("node_infiniband_port_data_transmitted_bytes_total", "bytes", "Bytes sent by the port."),
    ("node_infiniband_port_packets_received_total", "", "Packets received by the port."),
    ("node_infiniband_port_packets_transmitted_total", "", "Packets sent by the port."),
    ("node_infiniband_link_downed_total", "", "Times the link went down."),
    ("node_infiniband_link_error_recovery_total", "", "Times the link recovered from an error."),
    ("node_infiniband_symbol_error_total", "", "Symbols received wrong."),
    ("node_infiniband_port_errors_received_total", "", "Packets received with errors."),
    ("node_infiniband_port_receive_remote_physical_errors_total", "", "Packets marked bad by the other end."),
    ("node_infiniband_port_receive_switch_relay_errors_total", "", "Packets a switch could not pass on."),
    ("node_infiniband_port_discards_transmitted_total", "", "Packets dropped because the port was busy or down."),
    ("node_infiniband_port_constraint_errors_received_total", "", "Packets refused at the port's entrance."),
    ("node_infiniband_port_constraint_errors_transmitted_total", "", "Packets refused at the port's exit."),
    ("node_infiniband_port_transmit_wait_total", "", "Ticks in which data waited for credit."),
    ("node_infiniband_local_link_integrity_errors_total", "", "Times local errors went over the limit."),
    ("node_infiniband_excessive_buffer_overrun_errors_total", "", "Times buffers overran beyond the limit."),
    ("node_infiniband_vl15_dropped_total", "", "Management packets dropped."),
    ("lepton_gpu_energy_joules_total", "joules", "Energy used since the driver was loaded."),
    ("lepton_gpu_xid_errors_total", "", "Xid events seen, by number."),
    ("lepton_gpu_ecc_errors_total", "", "Memory errors: since the driver was loaded, or in the device's life."),
    ("lepton_gpu_pcie_replays_total", "", "Times the bus sent a packet again."),
    ("lepton_gpu_nvlink_errors_total", "", "Errors of all links together, by kind."),
    ("lepton_gpu_nvlink_link_errors_total", "", "Errors of one link, all kinds; absent while there are none."),
    ("lepton_gpu_nvlink_transmit_bytes_total", "bytes", "Bytes sent over all links."),
    ("lepton_gpu_nvlink_receive_bytes_total", "bytes", "Bytes received over all links."),
    ("lepton_gpu_ras_errors_total", "", "Errors an AMD device reports, by kind."),
    ("lepton_run_restarts_total", "", "Times workers were replaced."),
    ("lepton_run_sent_bytes_total", "bytes", "Bytes handed to the exchange."),
)  # fmt: skip

MEMINFO_KEYS: tuple[str, ...] = (
    "MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapCached", "Active", "Inactive", "SwapTotal",
    "SwapFree", "Dirty", "Writeback", "AnonPages", "Mapped", "Shmem", "Slab", "SReclaimable", "SUnreclaim",
    "PageTables", "CommitLimit", "Committed_AS", "VmallocUsed", "Mlocked", "HardwareCorrupted", "AnonHugePages",
)  # fmt: skip
"""The lines of ``/proc/meminfo`` that are kept, all in bytes; node_exporter's names for them."""


def _build() -> dict[str, Metric]:
    found = {name: Metric(name, "gauge", unit, text) for name, unit, text in _GAUGES}
    found |= {name: Metric(name, "counter", unit, text) for name, unit, text in _COUNTERS}
    for key in MEMINFO_KEYS:
        name = f"node_memory_{key}_bytes"
        found[name] = Metric(name, "gauge", "bytes", f"{key} of /proc/meminfo.")
    return found


CATALOGUE: Mapping[str, Metric] = MappingProxyType(_build())
"""Every metric that the agent's sources can give."""


def page_kind(metric: Metric) -> str:
    """The word after ``# TYPE`` on a metrics page.

    Counters whose node_exporter name lacks the suffix are untyped there, and here, so that checkers are content.

    >>> page_kind(CATALOGUE["node_vmstat_oom_kill"]), page_kind(CATALOGUE["node_intr_total"])
    ('untyped', 'counter')
    """
    if metric.kind == "counter" and not metric.name.endswith("_total"):
        return "untyped"
    return metric.kind
