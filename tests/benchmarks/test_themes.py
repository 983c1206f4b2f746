"""Every theme claims what it must, and each figure's contestants exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.figures import Benchmark, Options
from benchmarks.workloads.arrays import write_arrays

from benchmarks import (
    agent_cost,
    consistency,
    faults,
    nab,
    operator_alarms,
    parameter_server,
    planner_accuracy,
    planner_speed,
    privacy_accounting,
    privacy_audit,
    private_accuracy,
    private_training,
    remaining_life,
    sdk_ten_epochs,
    sync_training,
    time_to_accuracy,
    training_watch,
)

PROMISED = {
    "samples_per_second_vs_torchrun": (1.0, "higher"),
    "samples_per_second_autotuned_vs_torchrun": (1.4, "higher"),
    "accuracy_difference_points": (0.3, "lower"),
    "samples_per_second_vs_ray_train": (1.0, "higher"),
    "samples_per_second_vs_accelerate": (1.0, "higher"),
    "samples_per_second_vs_fabric": (1.0, "higher"),
    "startup_vs_torchrun": (1.1, "lower"),
    "scaling_efficiency": (0.93, "higher"),
    "peak_memory_vs_torchrun": (1.1, "lower"),
    "seconds_vs_keras": (0.5, "lower"),
    "seconds_vs_pytorch_loop": (0.5, "lower"),
    "views_vs_memcpy": (0.8, "higher"),
    "journal_vs_memcpy": (0.6, "higher"),
    "tcp_vs_raw_socket": (1.0, "higher"),
    "tls_slowdown": (3.5, "lower"),
    "vs_ray_100mb": (3.0, "higher"),
    "vs_ray_33k": (20.0, "higher"),
    "vs_rpc_100mb": (4.0, "higher"),
    "vs_rpc_33k": (8.0, "higher"),
    "adam_vs_fused": (0.95, "higher"),
    "embedding_vs_in_process": (0.9, "higher"),
    "embedding_tcp_vs_in_process": (0.3, "higher"),
    "straggler_speedup": (2.0, "higher"),
    "accuracy_ssp_minus_bsp": (-1.0, "higher"),
    "accuracy_asp_minus_bsp": (-1.0, "higher"),
    "accuracy_delay_compensation_minus_bsp": (-1.0, "higher"),
    "accuracy_backup_minus_bsp": (-1.0, "higher"),
    "accuracy_local_sgd_minus_bsp": (-1.0, "higher"),
    "accuracy_diloco_minus_bsp": (-1.0, "higher"),
    "accuracy_streaming_diloco_minus_bsp": (-1.0, "higher"),
    "accuracy_async_diloco_minus_bsp": (-1.0, "higher"),
    "accuracy_elastic_averaging_minus_bsp": (-1.0, "higher"),
    "bytes_diloco_int8": (390.0, "higher"),
    "bytes_streaming_4bit": (770.0, "higher"),
    "pushes_lost": (0.0, "lower"),
    "samples_lost": (0.0, "lower"),
    "samples_repeated": (0.0, "lower"),
    "server_recovery_p99_seconds": (1.0, "lower"),
    "worker_recovery_p99_seconds": (2.0, "lower"),
    "goodput": (0.88, "higher"),
    "step_over_ordinary_mlp": (1.2, "lower"),
    "step_over_ordinary_mnist_cnn": (1.3, "lower"),
    "step_over_ordinary_cifar_cnn": (1.15, "lower"),
    "step_over_ordinary_transformer": (1.3, "lower"),
    **{
        f"{what}_{model}": (goal, "lower")
        for what, goal in (("step_over_opacus", 0.6), ("memory_over_ordinary", 1.25))
        for model in ("mlp", "mnist_cnn", "cifar_cnn", "transformer")
    },
    "gradient_error": (10.0, "lower"),  # in millionths
    "noise_rate": (120.0, "higher"),
    "worst_below_percent": (0.05, "lower"),
    "worst_above_percent": (1.0, "lower"),
    "slowest_seconds": (0.5, "lower"),
    "mnist_accuracy": (98.1, "higher"),
    "mnist_epsilon": (2.93, "lower"),
    "cifar10_accuracy": (69.0, "higher"),
    "cifar10_epsilon": (3.0, "lower"),
    "honest_bound_within_claim": (20.0, "higher"),
    "honest_runs_flagged": (0.0, "lower"),
    "broken_trainers_flagged": (5.0, "higher"),
    "ledger_overspend_sqlite": (0.0, "lower"),
    "ledger_overspend_postgresql": (0.0, "lower"),
    "single_node": (7.0, "lower"),
    "multi_node": (9.0, "lower"),
    "multi_node_median": (5.5, "lower"),
    "single_node_zero_shot": (15.0, "lower"),
    "multi_node_zero_shot": (11.0, "lower"),
    "megatron_a100": (5.0, "lower"),
    "korthikanti": (3.5, "lower"),
    "rank_correlation_mean": (0.9, "higher"),
    "regret_mean": (4.5, "lower"),
    "regret_max": (27.0, "lower"),
    "residual_regret_mean": (2.0, "lower"),
    "residual_regret_max": (16.0, "lower"),
    "calibration_share": (5.0, "lower"),
    "local_worst": (15.0, "lower"),
    "costed_per_second": (300_000, "higher"),
    "whole_space_seconds": (10, "lower"),
    "whole_space_layouts": (1_300_000, "higher"),
    "standard_gate": (70.0, "higher"),
    "standard_aim": (74.0, "higher"),
    "low_false_positives_aim": (66.0, "higher"),
    "low_false_negatives_aim": (79.0, "higher"),
    "leave_one_category_out": (69.0, "higher"),
    "worst_at_level_x_0.96_and_1.04": (69.0, "higher"),
    "false_points_at_100_windows": (230.0, "lower"),
    "false_points_at_100_windows_aim": (180.0, "lower"),
    "microseconds_a_point": (25.0, "lower"),
    "memory_bytes_a_series": (640_000.0, "lower"),
    "memory_bytes_a_series_aim": (128_000.0, "lower"),
    "scorer_deviation": (0.05, "lower"),
    "nab_margin": (operator_alarms.ABOVE, "higher"),
    "injected_margin": (operator_alarms.ABOVE, "higher"),
    "core_share": (0.01, "lower"),
    "peak_memory_mb": (60.0, "lower"),
    "arrived_ratio": (0.99, "higher"),
    "stragglers_named": (0.99, "higher"),
    "straggler_false": (0, "lower"),
    "spikes_found": (0.98, "higher"),
    "spikes_false": (1, "lower"),
    "stops_named": (20, "higher"),
    "machine_precision": (0.95, "higher"),
    "machine_f1": (0.92, "higher"),
    "fd001_rmse": (12.0, "lower"),
    "fd001_coverage": (0.88, "higher"),
    "fd001_fit": (60, "lower"),
    "fd002_rmse": (23.3, "lower"),
    "fd002_coverage": (0.88, "higher"),
    "fd002_fit": (60, "lower"),
    "fd004_rmse": (23.8, "lower"),
    "fd004_coverage": (0.88, "higher"),
    "fd004_fit": (60, "lower"),
    "ai4i_pr_auc": (0.85, "higher"),
    "ai4i_calibration": (0.10, "lower"),
    "ai4i_brier": (0.5, "lower"),
    "machine_seconds": (1, "lower"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images, labels = np.zeros((4, 28, 28), np.uint8), np.zeros(4, np.int64)
    write_arrays(tmp_path, {"train": (images, labels), "test": (images, labels)})
    return tmp_path


def themes(folder: Path) -> list[Benchmark]:
    return [
        sync_training.build_in(folder),
        time_to_accuracy.benchmark_in(folder, goal=0.99),
        sdk_ten_epochs.build_in(folder),
        parameter_server.benchmark(),
        consistency.build_in(folder),
        faults.benchmark(),
        private_training.BENCHMARK,
        privacy_accounting.benchmark(),
        private_accuracy.BENCHMARK,
        privacy_audit.benchmark(),
        planner_speed.benchmark(),
        planner_accuracy.benchmark(),
        nab.benchmark(),
        operator_alarms.benchmark(),
        agent_cost.benchmark(),
        training_watch.benchmark(),
        remaining_life.benchmark(),
    ]


def test_the_figures_are_those_promised(folder: Path) -> None:
    found = {
        figure.name: (figure.goal, figure.better)
        for theme in themes(folder)
        for figure in theme.figures
        if figure.goal is not None
    }
    assert found == PROMISED


def test_every_figure_and_column_names_a_contest_and_contestants_that_exist(folder: Path) -> None:
    for theme in themes(folder):
        names = tuple(figure.name for figure in theme.figures)
        # Else its features would be computed here.
        quick = theme.name == "private_accuracy"
        options = Options(num_runs=1, only=names, quick=quick, as_json=True)
        there = {
            contest.name: {each.name for each in contest.contestants} for contest in theme.build(options)
        }
        for figure in theme.figures:
            assert set(figure.contestants) <= there[figure.contest], figure.name
        assert {column.contest for column in theme.columns} <= set(there)


def test_all_contestants_of_two_workers_are_told_the_same_steps_seed_and_threads(folder: Path) -> None:
    benchmark = sync_training.build_in(folder)
    (speed, *_) = benchmark.build(Options(num_runs=1, only=(), quick=False, as_json=True))
    for contestant in speed.contestants:
        if contestant.name in (sync_training.RAY, sync_training.ACCELERATE, sync_training.FABRIC):
            continue  # naming their command would install them
        words = " ".join(contestant.command(folder, 3))
        assert contestant.environment["OMP_NUM_THREADS"] == "1"
        assert f"steps={sync_training.STEPS}" in words or f"--steps {sync_training.STEPS}" in words
        assert "seed=3" in words or "--seed 3" in words
        assert contestant.name == sync_training.AUTOTUNED or ("--no-autotune" in words) == (
            "leptonai.cli" in words
        )
