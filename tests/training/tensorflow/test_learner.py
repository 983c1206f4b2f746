"""The Keras learner against plain Keras, itself on more workers, and itself resumed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from leptonai.compute.plan import Tuning
from leptonai.core.errors import Fault, InputError
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import Evaluate, TrainJob
from leptonai.training.learner import Alone, Batch, LearnerState, shares
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb
from leptonai.training.parameter_server.kernels import initialise_states, num_states
from leptonai.training.parameter_server.memory import PUSH, ShardMemory, ShardShape, Slot
from leptonai.training.parameter_server.shard import Shard

keras = pytest.importorskip("keras")

from leptonai.training.tensorflow.build import build_optimizer  # noqa: E402
from leptonai.training.tensorflow.learner import KerasLearner  # noqa: E402
from leptonai.training.tensorflow.metrics import CompiledMetric  # noqa: E402
from leptonai.training.tensorflow.objective import WeightedStep  # noqa: E402
from leptonai.training.tensorflow.tensors import unpack  # noqa: E402

TOLERANCE = 2e-6  # float32 sums in another order


class Meeting:
    """Where the threads of one gang leave their numbers for each other."""

    def __init__(self, num_workers: int) -> None:
        self.barrier = threading.Barrier(num_workers, timeout=60)
        self.values: list[Any] = [None] * num_workers


class ThreadExchange:
    """An exchange between threads of this process."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self.rank = meeting, rank
        self.num_workers = len(meeting.values)

    def _gather(self, values: Any) -> list[Any]:
        self._meeting.values[self.rank] = values.copy()
        self._meeting.barrier.wait()
        gathered = list(self._meeting.values)
        self._meeting.barrier.wait()
        return gathered

    def sum(self, values: Any) -> None:
        values[...] = np.sum(self._gather(values), axis=0)

    def broadcast(self, values: Any) -> None:
        values[...] = self._gather(values)[0]


def examples(num_examples: int = 24) -> Batch:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, num_examples)
    return random.normal(size=(num_examples, 6)).astype(np.float32) + labels[:, None], labels


def dense_model() -> Any:
    # Seeded one by one: threads that build at the same time share the global generator.
    first, last = (keras.initializers.GlorotUniform(seed=seed) for seed in (1, 2))
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", kernel_initializer=first),
            keras.layers.Dense(3, kernel_initializer=last),
        ]
    )


def job(**changes: Any) -> TrainJob:
    values: dict[str, Any] = {
        "model": dense_model,
        "data": Data(train=Arrays(*examples())),
        "global_batch_size": 8,
        "epochs": 1,
        "loss": "cross_entropy",
        "optimizer": Adam(lr=0.05),
    }
    return TrainJob(**{**values, **changes})


def take_steps(learner: KerasLearner, batches: list[Batch], *, first_step: int = 0, rank: int = 0) -> float:
    """Steps on this worker's share of each global batch; returns the sum of the losses."""
    total = 0.0
    for place, batch in enumerate(batches):
        size = len(batch[0])
        share = shares(size, learner._exchange.num_workers)[rank]
        mine = tuple(column[share] for column in batch)
        cuts = shares(len(mine[0]), min(learner._job.accumulate, max(len(mine[0]), 1)))
        micro = [tuple(column[cut] for column in mine) for cut in cuts] if len(mine[0]) else []
        seed = 1000 * (first_step + place) + rank
        total += learner.step(micro, num_examples=size, lr_factor=1.0, seed=seed)
    return total


def global_batches(sizes: tuple[int, ...] = (8, 8, 7, 1)) -> list[Batch]:
    images, labels = examples()
    starts = np.cumsum((0, *sizes)).tolist()
    return [(images[a:b], labels[a:b]) for a, b in itertools.pairwise(starts)]


def run_gang(num_workers: int, use: Callable[[int, ThreadExchange], Any]) -> list[Any]:
    """``use(rank, exchange)`` on threads of its own; the results by rank."""
    meeting = Meeting(num_workers)
    results: list[Any] = [None] * num_workers
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = use(rank, ThreadExchange(meeting, rank))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def arrays_of(state: LearnerState) -> dict[str, Any]:
    return {name: unpack(tensor) for name, tensor in state.tensors.items()}


def assert_close(first: LearnerState, second: LearnerState, *, tolerance: float = TOLERANCE) -> None:
    one, other = arrays_of(first), arrays_of(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=tolerance, err_msg=name)


def train(changes: dict[str, Any], num_workers: int) -> list[LearnerState]:
    def use(rank: int, exchange: ThreadExchange) -> LearnerState:
        learner = KerasLearner(job(**changes), Alone() if num_workers == 1 else exchange, tuning=Tuning())
        take_steps(learner, global_batches(), rank=rank)
        return learner.state()

    return run_gang(num_workers, use)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01), "clip_norm": 0.3},
        {"optimizer": AdamW(lr=0.01), "accumulate": 3},
    ],
    ids=["adam", "sgd-decay-clip", "adamw-accumulate"],
)
def test_workers_on_unequal_shares_equal_one_worker(changes: dict[str, Any]) -> None:
    (alone,) = train(changes, 1)
    for state in (*train(changes, 2), *train(changes, 3)):
        assert_close(alone, state)


def test_accumulation_changes_nothing_but_rounding() -> None:
    assert_close(train({}, 1)[0], train({"accumulate": 4}, 1)[0])


def test_a_step_equals_keras_own_training() -> None:
    model = dense_model()

    def compiled() -> Any:
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        clone.compile(optimizer=keras.optimizers.Adam(0.05), loss=loss)
        return clone

    learner = KerasLearner(job(model=compiled, loss=None, optimizer=None), Alone(), tuning=Tuning())
    take_steps(learner, global_batches())
    expected = compiled()
    for images, labels in global_batches():
        expected.train_on_batch(images, labels)
    for ours, theirs in zip(learner.model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=TOLERANCE)
    assert learner.base_learning_rate == pytest.approx(0.05)


def random_model() -> Any:
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Dense(3),
        ]
    )


def test_resume_is_bit_exact_with_dropout_and_batch_normalisation() -> None:
    whole = KerasLearner(job(model=random_model), Alone(), tuning=Tuning())
    take_steps(whole, global_batches())
    first = KerasLearner(job(model=random_model), Alone(), tuning=Tuning())
    take_steps(first, global_batches()[:2])
    second = KerasLearner(job(model=random_model, seed=9), Alone(), tuning=Tuning())
    second.restore(first.state())
    take_steps(second, global_batches()[2:], first_step=2)
    one, other = arrays_of(whole.state()), arrays_of(second.state())
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_dropout_follows_the_seed_of_the_step() -> None:
    def loss(seed: int) -> float:
        learner = KerasLearner(job(model=random_model), Alone(), tuning=Tuning())
        return learner.step([examples()], num_examples=24, lr_factor=1.0, seed=seed)

    assert loss(1) == loss(1) != loss(2)


def test_moving_statistics_are_the_example_weighted_mean_on_every_worker() -> None:
    def model() -> Any:
        return keras.Sequential(
            [keras.Input((6,)), keras.layers.BatchNormalization(momentum=0.0), keras.layers.Dense(3)]
        )

    def use(rank: int, exchange: ThreadExchange) -> LearnerState:
        learner = KerasLearner(job(model=model), exchange, tuning=Tuning())
        take_steps(learner, [tuple(column[:5] for column in examples())], rank=rank)
        return learner.state()

    first, second = (arrays_of(state) for state in run_gang(2, use))
    moving = first["model/batch_normalization/moving_mean"]
    np.testing.assert_allclose(moving, examples()[0][:5].mean(0), rtol=1e-5)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_names_do_not_depend_on_what_the_process_built_before() -> None:
    first = KerasLearner(job(model=random_model), Alone(), tuning=Tuning()).state()
    second = KerasLearner(job(model=random_model), Alone(), tuning=Tuning()).state()
    assert list(first.tensors) == list(second.tensors)
    assert "model/dense_1/kernel" in first.tensors
    assert "optimizer/dense_1/kernel/momentum" in first.tensors
    assert "optimizer/iteration" in first.tensors


@pytest.mark.parametrize("num_workers", [1, 2])
def test_infinite_loss_is_a_fault_and_changes_no_weight(num_workers: int) -> None:
    def use(rank: int, exchange: ThreadExchange) -> None:
        learner = KerasLearner(job(), Alone() if num_workers == 1 else exchange, tuning=Tuning())
        before = arrays_of(learner.state())
        bad = (np.full((4, 6), np.inf, np.float32), np.zeros(4, np.int64))
        with pytest.raises(Fault, match="the loss is"):
            learner.step([bad], num_examples=4 * num_workers, lr_factor=1.0, seed=0)
        after = arrays_of(learner.state())
        assert all(
            np.array_equal(before[name], after[name]) for name in before if name != "optimizer/learning_rate"
        )

    run_gang(num_workers, use)


def test_a_smaller_last_batch_needs_no_second_trace() -> None:
    calls = []

    class Counting(keras.layers.Layer):  # type: ignore[misc]
        def call(self, inputs: Any) -> Any:
            calls.append(inputs.shape)
            return inputs

    def model() -> Any:
        return keras.Sequential([keras.Input((6,)), Counting(), keras.layers.Dense(3)])

    learner = KerasLearner(job(model=model), Alone(), tuning=Tuning())
    calls.clear()
    take_steps(learner, global_batches())
    assert calls == [(None, 6)]


def test_metrics_are_sums_over_examples_in_training_and_evaluation() -> None:
    learner = KerasLearner(job(), Alone(), tuning=Tuning())
    images, labels = examples()
    right = int((learner.model.predict(images, verbose=0).argmax(-1) == labels).sum())
    sums = learner.evaluate([(images[:10], labels[:10]), (images[10:], labels[10:])])
    assert sums["accuracy"] == right
    learner.step([(images, labels)], num_examples=24, lr_factor=1.0, seed=0)
    assert learner.train_metric_sums == {"accuracy": right}


def test_a_worker_without_evaluation_examples_gives_the_same_keys() -> None:
    assert KerasLearner(job(), Alone(), tuning=Tuning()).evaluate([]) == {"loss": 0.0, "accuracy": 0.0}


def test_a_model_without_input_takes_its_shapes_from_the_data() -> None:
    def model() -> Any:
        return keras.Sequential([keras.layers.Dense(3)])

    learner = KerasLearner(job(model=model), Alone(), tuning=Tuning())
    assert learner.state().tensors["model/dense/kernel"].shape == (6, 3)


def test_bfloat16_keeps_float32_weights_and_is_refused_for_ready_built_layers() -> None:
    learner = KerasLearner(job(), Alone(), tuning=Tuning(precision="bfloat16"))
    take_steps(learner, global_batches())
    assert learner.state().tensors["model/dense/kernel"].dtype == "F32"
    assert keras.config.dtype_policy().name == "float32"
    ready = dense_model()
    with pytest.raises(InputError, match="bfloat16"):
        KerasLearner(job(model=lambda: ready), Alone(), tuning=Tuning(precision="bfloat16"))


def test_a_state_of_another_model_is_refused_and_changes_nothing() -> None:
    learner = KerasLearner(job(), Alone(), tuning=Tuning())
    before = arrays_of(learner.state())
    with pytest.raises(InputError, match=r"no tensor|expected shape"):
        learner.restore(KerasLearner(job(model=random_model), Alone(), tuning=Tuning()).state())
    after = arrays_of(learner.state())
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_custom_step_trains() -> None:
    def step(model: Any, batch: Any) -> Any:
        outputs = model(batch[0], training=True)
        losses = keras.losses.sparse_categorical_crossentropy(batch[1], outputs, from_logits=True)
        return keras.ops.mean(losses)

    changes = {"loss": None, "step": step, "evaluate": Evaluate(metrics=("accuracy",))}
    assert_close(train({}, 1)[0], train(changes, 1)[0])


def test_uncompiled_model_without_loss_is_refused() -> None:
    with pytest.raises(InputError, match="not compiled"):
        KerasLearner(job(loss=None), Alone(), tuning=Tuning())


def test_a_compiled_sum_loss_is_refused() -> None:
    def model() -> Any:
        built = dense_model()
        built.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"))
        return built

    with pytest.raises(InputError, match="sum"):
        KerasLearner(job(model=model, loss=None), Alone(), tuning=Tuning())


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_cross_entropy_takes_logits_also_from_a_softmax_layer(activation: str | None) -> None:
    def model() -> Any:
        return keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(3, activation, kernel_initializer="ones")]
        )

    sums = KerasLearner(job(model=model), Alone(), tuning=Tuning()).evaluate([examples()])
    assert sums["loss"] == pytest.approx(24 * np.log(3), rel=1e-5)


def test_an_output_with_a_mask_is_refused() -> None:
    def model() -> Any:
        layers = [keras.Input((4,)), keras.layers.Embedding(5, 3, mask_zero=True), keras.layers.Dense(3)]
        return keras.Sequential(layers)

    learner = KerasLearner(job(model=model), Alone(), tuning=Tuning())
    with pytest.raises(InputError, match="carries a mask"):
        learner.evaluate([(np.ones((2, 4), np.int64), np.zeros((2, 4), np.int64))])


def test_an_optimizer_that_scales_the_loss_is_refused() -> None:
    def scaling(variables: Any) -> Any:
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))

    with pytest.raises(InputError, match="scales the loss"):
        KerasLearner(job(optimizer=scaling), Alone(), tuning=Tuning())


def test_metrics_compiled_into_the_model_are_found_by_name() -> None:
    def model() -> Any:
        built = dense_model()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        built.compile(
            "adam", loss, metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(k=3, name="top")]
        )
        return built

    metrics = {"accuracy": CompiledMetric("accuracy"), "top": CompiledMetric("top")}
    learner = KerasLearner(
        job(model=model, loss=None, optimizer=None, evaluate=Evaluate(metrics=metrics)),
        Alone(),
        tuning=Tuning(),
    )
    sums = learner.evaluate([examples()])
    expected = dict(
        zip(("loss", "accuracy", "top"), learner.model.evaluate(*examples(), verbose=0), strict=True)
    )
    assert {name: value / 24 for name, value in sums.items()} == pytest.approx(expected, rel=1e-5)
    assert sums["top"] == 24


def test_keras_steps_by_adagrad_and_lamb_are_the_parameter_servers() -> None:
    start = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    slope = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    for chosen in (Adagrad(lr=0.1, initial_accumulator=0.1), Lamb(lr=0.1, weight_decay=0.0)):
        weight = keras.Variable(start)
        optimizer = build_optimizer(job(optimizer=chosen), SimpleNamespace(trainable_variables=[weight]))
        memory = ShardMemory.create(
            ShardShape(num_elements=64, num_states=num_states(chosen), num_slots=1, chunk_elements=64)
        )
        memory.parameters[:] = start
        initialise_states(chosen, memory.states)
        shard = Shard(memory, chosen, ranges=[(0, 64)])
        memory.gradients(0)[:] = slope
        memory.slots[0, [Slot.OP, Slot.STOP]] = PUSH, 64
        for sequence in (1, 2, 3):
            optimizer.apply([keras.ops.convert_to_tensor(slope)], [weight])
            memory.slots[0, Slot.OFFERED] = sequence
            shard.apply_group([(0, sequence, 1.0)], lr=0.1)
        np.testing.assert_allclose(np.asarray(weight), memory.parameters, rtol=1e-5, atol=1e-6)
        memory.close()


@pytest.mark.parametrize("chosen", [Adagrad(weight_decay=0.1), Lamb()])
def test_decay_that_keras_would_apply_elsewhere_is_refused(chosen: Adagrad | Lamb) -> None:
    with pytest.raises(InputError, match="expected weight_decay=0"):
        KerasLearner(job(optimizer=chosen), Alone(), tuning=Tuning())


def test_weights_before_the_labels_go_to_the_loss_as_keras_sample_weights() -> None:
    def model() -> Any:
        built = dense_model()
        built.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return built

    images, labels = examples()
    weights = np.linspace(0.0, 3.0, 24, dtype=np.float32)
    changes = {"model": model, "loss": None, "optimizer": None, "step": WeightedStep()}
    learner = KerasLearner(job(**changes), Alone(), tuning=Tuning())
    learner.step([(images, weights, labels)], num_examples=24, lr_factor=1.0, seed=0)
    expected = model()
    expected.train_on_batch(images, labels, sample_weight=weights)
    for ours, theirs in zip(learner.model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
