"""Decide which worker runs where: a pure function of the work, the machines and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from leptonai.compute.cluster import Cluster, Host, Node, hosts_of
from leptonai.compute.cost import estimate
from leptonai.compute.plan import Backend, Placement, Plan, Tuning
from leptonai.compute.servers import ServerPlan
from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError


def plan(
    workload: Workload,
    cluster: Cluster,
    *,
    available_cores: tuple[int, ...],
    tuning: Tuning | None = None,
    num_gpus: int = 0,
    measured_core_flops: float | None = None,
    for_run: bool = False,
    servers: ServerPlan | None = None,
) -> Plan:
    """Place the workers of a run and predict its cost; equal arguments give equal plans.

    Args:
        workload: the work.
        cluster: the machines and the number of workers.
        available_cores: numbers of the cores of this machine that workers may use, at least one.
        tuning: what autotune chose; None: float32, and the threads the cluster asks for or its cores allow.
        num_gpus: GPUs of this machine, >= 0.
        measured_core_flops: FLOP/s of one core of this machine, > 0; None: not measured.
        servers: the parameter servers of the run; None: it has none.
        for_run: whether a run follows; then what this machine cannot do is an error, not a warning.

    Raises:
        InputError: no node can compute, or with ``for_run`` a node is another machine or lacks its GPUs.

    >>> from leptonai.compute.cluster import Device
    >>> work = Workload(num_parameters=10, parameter_bytes=40, flops_per_example=60.0, num_examples=8,
    ...     activation_bytes_per_example=8, global_batch_size=4, steps_per_epoch=2, total_steps=2)
    >>> node = Node(name="laptop", devices=(Device(kind="cpu", cores=4),))
    >>> found = plan(work, Cluster(name="home", nodes=(node,), num_workers=2), available_cores=(0, 1, 2, 3))
    >>> found.backend, [placement.cores for placement in found.placements]
    ('gloo', [(0, 1), (2, 3)])
    """
    if not available_cores:
        raise InputError("plan: expected at least one available core")
    if for_run:
        _check_runs_here(cluster, num_gpus)
    hosts = hosts_of(cluster, available_cores)
    kind: Literal["cpu", "gpu"] = "gpu" if any(node.num_devices("gpu") for node in cluster.nodes) else "cpu"
    nodes = _spread(cluster, kind)
    if tuning is None:
        tuning = _default_tuning(cluster, hosts, nodes)
    placements = _place(hosts, nodes, kind=kind, threads=tuning.threads)
    if servers is not None:  # servers need the cores too, and workers come and go
        placements = tuple(replace(placement, cores=()) for placement in placements)
    return Plan(
        strategy="parameter_server" if servers else "single" if len(nodes) == 1 else "data_parallel",
        backend="served" if servers else _backend(placements, hosts),
        servers=servers,
        placements=placements,
        tuning=tuning,
        estimate=estimate(
            workload,
            cluster,
            placements,
            hosts=hosts,
            measured_core_flops=measured_core_flops,
            servers=servers,
        ),
        workload=workload,
        warnings=(
            *(() if servers else _core_warnings(placements, hosts)),
            *_machine_warnings(cluster, len(available_cores), num_gpus),
            *_work_warnings(workload, placements, hosts),
        ),
    )


def _check_runs_here(cluster: Cluster, num_gpus: int) -> None:
    for node in cluster.nodes:
        if not node.is_local:
            raise InputError(
                f"node {node.name!r} has the address {node.address}, "
                "but the local engine runs on this machine alone",
                hint="leave the address out, or use `lepton plan`, which starts nothing",
            )
    declared = sum(node.num_devices("gpu") for node in cluster.nodes)
    if declared > num_gpus:
        raise InputError(
            f"the cluster file declares {declared} GPUs, this machine has {num_gpus}",
            hint="declare the GPUs that exist; `lepton doctor` lists them",
        )


def _spread(cluster: Cluster, kind: Literal["cpu", "gpu"]) -> list[Node]:
    """The node of each rank: workers go one by one where most cores (or GPUs) are left for each."""
    capacity = {
        node.name: node.num_devices("gpu") if kind == "gpu" else node.num_cores for node in cluster.nodes
    }
    usable = [node for node in cluster.nodes if capacity[node.name]]
    if not usable:
        raise InputError(
            f"cluster {cluster.name!r}: no node has a cpu or gpu", hint="workers compute on a cpu or a gpu"
        )
    counts = {node.name: 0 for node in usable}
    for _ in range(cluster.num_workers):
        chosen = min(counts, key=lambda name: (counts[name] + 1) / capacity[name])
        counts[chosen] += 1
    return [node for node in usable for _ in range(counts[node.name])]


def _default_tuning(cluster: Cluster, hosts: Sequence[Host], nodes: Sequence[Node]) -> Tuning:
    if cluster.threads_per_worker is not None:
        return Tuning(
            threads=cluster.threads_per_worker, why="threads from the cluster file, nothing measured"
        )
    # One number for all, that of the most crowded machine: the others would only wait for it.
    per_worker = [
        len(host.cores) // num_workers for host in hosts if (num_workers := _num_workers(host, nodes))
    ]
    return Tuning(threads=max(1, min(per_worker)), why="cores divided by workers, nothing measured")


def _num_workers(host: Host, nodes: Sequence[Node]) -> int:
    return sum(node.name in host.nodes for node in nodes)


def _place(
    hosts: Sequence[Host], nodes: Sequence[Node], *, kind: Literal["cpu", "gpu"], threads: int
) -> tuple[Placement, ...]:
    """Each worker's own cores and GPU, host by host."""
    cores: dict[int, tuple[int, ...]] = {}
    gpus: dict[int, int] = {}
    for host in hosts:
        ranks = [rank for rank, node in enumerate(nodes) if node.name in host.nodes]
        if len(ranks) * threads <= len(host.cores):
            for position, rank in enumerate(ranks):
                cores[rank] = host.cores[position * threads : (position + 1) * threads]
        if kind == "gpu":
            gpus.update(_gpu_indices(ranks, nodes))
    return tuple(
        Placement(
            rank=rank,
            node=node.name,
            device_kind=kind,
            device_index=gpus.get(rank),
            cores=cores.get(rank, ()),
            threads=threads,
        )
        for rank, node in enumerate(nodes)
    )


def _gpu_indices(ranks: Sequence[int], nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
    """GPUs in turn within each node; nodes of one machine divide its GPUs in order."""
    first = 0
    for name in dict.fromkeys(nodes[rank].name for rank in ranks):
        own = [rank for rank in ranks if nodes[rank].name == name]
        num_gpus = nodes[own[0]].num_devices("gpu")
        for position, rank in enumerate(own):
            yield rank, first + position % num_gpus
        first += num_gpus


def _shares_gpu(placements: Sequence[Placement], hosts: Sequence[Host]) -> bool:
    used = [
        (position, placement.device_index)
        for placement in placements
        for position, host in enumerate(hosts)
        if placement.node in host.nodes and placement.device_kind == "gpu"
    ]
    return len(used) > len(set(used))


def _backend(placements: Sequence[Placement], hosts: Sequence[Host]) -> Backend:
    if len(placements) == 1:
        return "none"
    # NCCL refuses two ranks on one GPU.
    if placements[0].device_kind == "cpu" or _shares_gpu(placements, hosts):
        return "gloo"
    return "nccl"


def _core_warnings(placements: Sequence[Placement], hosts: Sequence[Host]) -> Iterator[str]:
    for host in hosts:
        here = [placement for placement in placements if placement.node in host.nodes]
        if not here or not host.cores or here[0].cores:
            continue
        threads = here[0].threads
        each = f" of {threads} threads" if threads > 1 else ""
        words = f"{len(here)} workers{each} on {len(host.cores)} cores"
        if len(here) == 1:
            words = f"1 worker{each} on {len(host.cores)} cores"
            yield f"{words}: its threads share cores and will run slower"
        else:
            yield f"{words}: workers share cores and will run slower"


def _machine_warnings(cluster: Cluster, num_available_cores: int, num_gpus: int) -> Iterator[str]:
    local = [node for node in cluster.nodes if node.is_local]
    most = max((node.num_cores for node in local), default=0)
    if most > num_available_cores:
        yield f"a node of this machine declares {most} cores, {num_available_cores} are available"
    declared = sum(node.num_devices("gpu") for node in local)
    if declared > num_gpus:
        yield f"the cluster file declares {declared} GPUs here, this machine has {num_gpus}: it cannot run"
    if local and num_gpus and not declared:
        yield f"this machine has {num_gpus} GPUs that the cluster file does not declare: they are not used"
    for node in cluster.nodes:
        if node.num_devices("tpu"):
            yield f"the TPUs of node {node.name} are not used"


def _work_warnings(
    workload: Workload, placements: Sequence[Placement], hosts: Sequence[Host]
) -> Iterator[str]:
    if workload.global_batch_size < len(placements):
        yield (
            f"{len(placements)} workers for batches of {workload.global_batch_size} examples: "
            "some workers have nothing to do"
        )
    if _shares_gpu(placements, hosts):
        yield "workers share GPUs and will run slower; they exchange over gloo, as NCCL needs a GPU for each"
