"""Keras models in memory of the parameter server, against plain TensorFlow and the ordinary learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leptonai.compute.plan import Tuning
from leptonai.core.errors import Fault, InputError
from leptonai.testing import check_flat_learner
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import TrainJob
from leptonai.training.learner import Alone, LearnerState
from leptonai.training.optimizers import SGD, Adam

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from leptonai.training.tensorflow.flat import KerasFlatLearner  # noqa: E402
from leptonai.training.tensorflow.learner import KerasLearner  # noqa: E402

rng = np.random.default_rng(1)
X = rng.normal(size=(12, 5)).astype(np.float32)
Y = rng.integers(0, 3, size=12)
PLAIN = Tuning(precision="float32", memory_format="contiguous", compile=False, threads=1, why="a test")


def net() -> Any:
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(7, "tanh"), keras.layers.Dense(3)])


def normalised() -> Any:
    layers = [keras.layers.Dense(7), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *layers])


def half_used() -> Any:
    inputs = keras.Input((5,))
    shared = keras.layers.Dense(5, "tanh", name="shared")
    outputs = keras.layers.Dense(3, name="last")(shared(shared(inputs)))
    model = keras.Model(inputs, outputs)
    model.aside = keras.layers.Dense(2)
    model.aside.build((None, 2))
    return model


def job(**changes: Any) -> TrainJob:
    settings: dict[str, Any] = {
        "model": net,
        "data": Data(train=Arrays(X, Y)),
        "loss": "cross_entropy",
        "optimizer": SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
        "steps": 3,
        "global_batch_size": 12,
        "seed": 3,
    }
    return TrainJob(**{**settings, **changes})


class Memory:
    """What a parameter server gives a learner."""

    def __init__(self, learner: KerasFlatLearner) -> None:
        self.parameters = [values.copy() for values in learner.initial()]
        self.gradients = [np.full_like(values, np.nan) for values in self.parameters]
        learner.bind(self.parameters, self.gradients)


def same_state(left: LearnerState, right: LearnerState) -> None:
    assert left.tensors.keys() == right.tensors.keys()
    for name, raw in left.tensors.items():
        other = right.tensors[name]
        assert (raw.dtype, raw.shape) == (other.dtype, other.shape), name
        ours, theirs = (np.frombuffer(each.data, np.uint8) for each in (raw, other))
        if raw.dtype == "F32":
            np.testing.assert_allclose(
                ours.view(np.float32), theirs.view(np.float32), atol=1e-6, err_msg=name
            )
        else:
            np.testing.assert_array_equal(ours, theirs, name)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_passes_the_check_of_flat_learners(accumulate: int) -> None:
    settings = job(model=half_used, accumulate=accumulate)
    check_flat_learner(lambda: KerasFlatLearner(settings, PLAIN), (X, Y))


def test_the_gradient_is_that_of_tensorflow_and_zero_where_the_loss_does_not_reach() -> None:
    learner = KerasFlatLearner(job(model=half_used), PLAIN)
    memory = Memory(learner)
    total = learner.gradient((X, Y), num_examples=24, seed=0)
    variables = learner.model.trainable_variables
    with tf.GradientTape() as tape:
        outputs = learner.model(X, training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(Y, outputs, from_logits=True))
    assert total == pytest.approx(12 * float(loss))
    gradients = tape.gradient(loss, variables)
    assert sum(gradient is None for gradient in gradients) == 2
    for ours, theirs in zip(memory.gradients, gradients, strict=True):
        expected = np.zeros_like(ours) if theirs is None else 0.5 * theirs.numpy().reshape(-1)
        np.testing.assert_allclose(ours, expected, atol=1e-7)


def test_parameters_are_copied_in_by_refresh_alone() -> None:
    learner = KerasFlatLearner(job(), PLAIN)
    memory = Memory(learner)
    kernel = learner.model.trainable_variables[0]
    memory.parameters[0][:] = 2.0
    assert (kernel.numpy() != 2.0).all()
    learner.refresh()
    memory.parameters[0][:] = 3.0  # a variable that shared its memory would see half an update
    assert (kernel.numpy() == 2.0).all()
    learner.local_step((X, Y), lr_factor=1.0, seed=0)
    np.testing.assert_array_equal(memory.parameters[0], kernel.numpy().reshape(-1))
    assert (memory.parameters[0] != 3.0).all()


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_local_steps_are_those_of_the_ordinary_learner(clip_norm: float | None) -> None:
    settings = job(model=normalised, clip_norm=clip_norm)
    flat = KerasFlatLearner(settings, PLAIN)
    ordinary = KerasLearner(settings, Alone(), tuning=PLAIN)
    Memory(flat)
    for step in range(3):
        ours = flat.local_step((X, Y), lr_factor=0.5, seed=step)
        assert ours == pytest.approx(ordinary.step([(X, Y)], num_examples=12, lr_factor=0.5, seed=step))
    same_state(flat.state(), ordinary.state())
    assert flat.evaluate([(X, Y)]) == pytest.approx(dict(ordinary.evaluate([(X, Y)])))
    assert flat.train_metric_sums == ordinary.train_metric_sums


def test_states_go_to_and_fro_between_flat_and_ordinary() -> None:
    settings = job(model=normalised, optimizer=Adam(lr=0.01))
    ordinary = KerasLearner(settings, Alone(), tuning=PLAIN)
    ordinary.step([(X, Y)], num_examples=12, lr_factor=1.0, seed=0)
    saved = ordinary.state()
    flat = KerasFlatLearner(settings, PLAIN)
    memory = Memory(flat)
    model_only = {name: raw for name, raw in saved.tensors.items() if name.startswith("model/")}
    flat.restore(LearnerState(tensors=model_only, values={}))
    assert flat.state().tensors.keys() == model_only.keys()
    named = [np.frombuffer(model_only[f"model/{spec.name}"].data, np.float32) for spec in flat.tensors]
    for values, expected in zip(memory.parameters, named, strict=True):
        np.testing.assert_array_equal(values, expected)
    flat.restore(saved)
    flat.local_step((X, Y), lr_factor=1.0, seed=1)
    ordinary.step([(X, Y)], num_examples=12, lr_factor=1.0, seed=1)
    same_state(flat.state(), ordinary.state())
    ordinary.restore(flat.state())


def test_dropout_follows_the_seed_and_bfloat16_is_near() -> None:
    def dropping() -> Any:
        return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])

    def found(tuning: Tuning, seed: int, model: Any = dropping) -> Any:
        learner = KerasFlatLearner(job(model=model), tuning)
        memory = Memory(learner)
        learner.gradient((X, Y), num_examples=12, seed=seed)
        return np.concatenate(memory.gradients)

    half = Tuning(precision="bfloat16", memory_format="contiguous", compile=False, threads=1, why="a test")
    np.testing.assert_array_equal(found(PLAIN, 1), found(PLAIN, 1))
    assert (found(PLAIN, 1) != found(PLAIN, 2)).any()
    assert np.abs(found(half, 1, net) - found(PLAIN, 1, net)).max() < 0.05


def test_an_infinite_loss_is_a_fault_and_nothing_moves() -> None:
    learner = KerasFlatLearner(job(), PLAIN)
    memory = Memory(learner)
    before = np.concatenate(memory.parameters)
    with pytest.raises(Fault, match="the loss is"):
        learner.gradient((np.full_like(X, np.nan), Y), num_examples=12, seed=0)
    with pytest.raises(Fault, match="the loss is"):
        learner.local_step((np.full_like(X, np.nan), Y), lr_factor=1.0, seed=0)
    np.testing.assert_array_equal(np.concatenate(memory.parameters), before)
    memory.parameters[0][0] = np.nan
    learner.refresh()
    with pytest.raises(Fault, match="are not finite"):
        learner.state()


def test_models_that_cannot_be_trained_so_are_refused() -> None:
    with pytest.raises(InputError, match="no trainable weights"):
        KerasFlatLearner(
            job(model=lambda: keras.Sequential([keras.Input((5,)), keras.layers.Flatten()])), tuning=PLAIN
        )
    with pytest.raises(InputError, match="is float64, the parameter server keeps float32"):
        KerasFlatLearner(
            job(model=lambda: keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, dtype="float64")])),
            tuning=PLAIN,
        )
