# SPDX-License-Identifier: Apache-2.0
"""Keras 3 on torch: a clone has weights, built state, optimizer, losses and metrics, and nothing of its source's.

The oracle is the source itself: trained with the same data, both must end with the same bits. That nothing is in common
is found out by following all references, closures included, from both.
"""

from __future__ import annotations

import copy
import gc
import os
import threading
import types

import numpy as np
import pytest
import torch

import torchcow
import torchcow.testing

os.environ.setdefault("KERAS_BACKEND", "torch")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
keras = pytest.importorskip("keras", reason="the group dev of the package installs it")
if keras.backend.backend() != "torch":
    pytest.skip("keras uses another backend", allow_module_level=True)
L, optimizers = keras.layers, keras.optimizers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6, 8)).astype("float32")
Y = RNG.normal(size=(16, 1)).astype("float32")


def sequential(*layers):
    return keras.Sequential([keras.Input((6, 8)), *layers, L.Flatten(), L.Dense(1)])


def functional():
    inputs = keras.Input((6, 8))
    x = L.Dense(8, name="first", kernel_regularizer="l2")(inputs)
    x = keras.ops.tanh(L.add([x, inputs]) * 2)
    x = L.Dropout(0.2, seed=1, name="drop")(x)
    return keras.Model(inputs, L.Dense(1)(L.Flatten()(x)))


def attention():
    inputs = keras.Input((6, 8))
    x = L.LayerNormalization()(L.MultiHeadAttention(2, 4, dropout=0.1, seed=1)(inputs, inputs) + inputs)
    return keras.Model(inputs, L.Dense(1)(L.GlobalAveragePooling1D()(x)))


def nested():
    inner = keras.Sequential([L.Dense(8), L.Dense(4)])
    inputs = keras.Input((6, 8))
    return keras.Model(inputs, L.Dense(1)(L.Flatten()(inner(inputs) + inner(inputs * 2))))


def low_rank():
    model = sequential(L.Dense(8))
    model.layers[0].enable_lora(2)
    return model


class MadeInCall(keras.Model):
    """Its layers do not exist before the first call, and `get_config` knows nothing about them."""

    def __init__(self):
        super().__init__()
        self.first = L.Dense(8)
        self.blocks = []

    def call(self, x, training=False):
        if not self.blocks:
            self.blocks.append(L.Dropout(0.5, seed=3))
            self.blocks.append(L.Flatten())
            self.blocks.append(L.Dense(1, activity_regularizer="l2"))
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class OwnStep(keras.Model):
    """A loop of its own, and losses that belong to the graph of the last call."""

    def __init__(self):
        super().__init__()
        self.flatten, self.dense, self.seen = L.Flatten(), L.Dense(1), keras.metrics.Mean("seen")

    def call(self, x):
        y = self.dense(self.flatten(x))
        self.add_loss(keras.ops.mean(y**2))
        return y

    def train_step(self, data):
        self.zero_grad()
        loss = keras.ops.mean((self(data[0], training=True) - data[1]) ** 2) + sum(self.losses)
        loss.backward()
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in self.trainable_weights], self.trainable_weights)
        self.seen.update_state(loss)
        return {"seen": self.seen.result()}


MODELS = {
    "sequential": lambda: sequential(L.Dense(8, "relu"), L.BatchNormalization(), L.Dropout(0.5, seed=1)),
    "functional": functional,
    "layers made in call": MadeInCall,
    "own step": OwnStep,
    "attention": attention,
    "nested": nested,
    "low rank": low_rank,
    "recurrent": lambda: sequential(L.Bidirectional(L.LSTM(4, return_sequences=True))),
    "lambda": lambda: sequential(L.Lambda(lambda x: x * 2), L.GaussianNoise(0.1, seed=1)),
    "torch module": lambda: sequential(L.TorchModuleWrapper(torch.nn.Linear(8, 4))),
}  # fmt: skip

OPTIMIZERS = {
    "adam": lambda: optimizers.Adam(0.01),
    "momentum and average": lambda: optimizers.SGD(0.01, momentum=0.9, use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda: optimizers.AdamW(0.01, gradient_accumulation_steps=2),
    "schedule": lambda: optimizers.RMSprop(optimizers.schedules.ExponentialDecay(0.01, 2, 0.5)),
    "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.01)),
}


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session()


def fit(model, epochs=2):
    return model.fit(X, Y, epochs=epochs, batch_size=8, shuffle=False, verbose=0).history


def trained(make, optimizer="adam"):
    model = make()
    model.compile(OPTIMIZERS[optimizer](), "mse", metrics=["mae"])
    fit(model)
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    return model


def bits(model):
    return [variable.value.detach().clone() for variable in (*model.variables, *model.optimizer.variables)]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def reached_from(obj):
    seen, waiting = {}, [obj]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, (type, types.ModuleType, str)):
            continue
        seen[id(found)] = found
        if isinstance(found, types.FunctionType):
            waiting += [*(found.__closure__ or ()), found.__dict__]
        else:
            waiting += gc.get_referents(found)
    return seen


STATE = (torch.Tensor, keras.Variable, L.Layer, keras.metrics.Metric, optimizers.Optimizer, keras.losses.Loss)


def check_a_clone(model):
    first = bits(model)
    prototype = torchcow.Prototype(model)
    mine = prototype.clone()
    assert type(mine) is type(model) and mine.built == model.built
    theirs = reached_from(model)
    common = [found for key, found in reached_from(mine).items() if key in theirs and isinstance(found, STATE)]
    assert common == []
    assert [v.path for v in mine.variables] == [v.path for v in model.variables]
    assert np.array_equal(mine.predict(X, verbose=0), model.predict(X, verbose=0))
    before = bits(model)
    history = fit(mine)
    assert same(bits(model), before), "training the clone has changed the source"
    assert not same(bits(mine), before), "the clone was not trained"
    if hasattr(mine.optimizer, "_trainable_variables"):
        assert [id(v) for v in mine.optimizer._trainable_variables] == [id(v) for v in mine.trainable_variables]
    assert fit(model) == history
    assert same(bits(mine), bits(model))
    assert np.array_equal(mine.evaluate(X, Y, verbose=0), model.evaluate(X, Y, verbose=0))
    assert same(bits(prototype.clone()), first)
    torchcow.testing.verify()


@pytest.mark.parametrize("name", MODELS)
def test_a_clone_predicts_and_trains_as_its_source(name):
    check_a_clone(trained(MODELS[name]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_clone_has_the_state_of_the_optimizer(optimizer):
    check_a_clone(trained(MODELS["functional"], optimizer))


@pytest.mark.parametrize("name", ["sequential", "functional", "layers made in call"])
def test_a_model_that_was_not_trained_yet(name):
    model = MODELS[name]()
    model.compile("adam", "mse", metrics=["mae"])
    model(X)
    mine = torchcow.Prototype(model).clone()
    assert np.array_equal(mine.predict(X, verbose=0), model.predict(X, verbose=0))
    assert fit(mine) == fit(model)
    assert same(bits(mine), bits(model))


def test_the_clone_of_keras_is_no_substitute():
    model = trained(MadeInCall)
    with pytest.raises(Exception, match=r"deserialized|get_config|not supported"):
        keras.models.clone_model(model)


@pytest.mark.sharing
def test_the_weights_are_shared_until_a_clone_is_trained():
    model = trained(MODELS["sequential"])
    prototype = torchcow.Prototype(model)
    clones = prototype.spawn(4)
    assert all(torchcow.is_shared(v.value) for one in clones for v in one.trainable_variables)
    fit(clones[0], epochs=1)
    assert not any(torchcow.is_shared(v.value) for v in clones[0].trainable_variables)
    assert all(torchcow.is_shared(v.value) for v in clones[1].trainable_variables)


def test_what_is_saved_and_described_is_the_same():
    for name in ("sequential", "functional", "nested"):
        model = trained(MODELS[name])
        mine = torchcow.Prototype(model).clone()
        assert str(mine.get_config()) == str(model.get_config())
        assert mine.to_json() == model.to_json()
        again = keras.Model.from_config(model.get_config()) if name == "functional" else copy.deepcopy(mine)
        assert len(again.weights) == len(model.weights)


def test_names_of_layers_and_variables():
    prototype = torchcow.Prototype({"model": trained(functional)})
    bias = RNG.normal(size=8).astype("float32")
    mine = prototype.clone(
        **{
            "model.drop.rate": 0.4,
            "model.optimizer.learning_rate": 0.5,
            "model.first.bias": bias,
            "model.first.trainable": False,
        }
    )["model"]
    assert mine.get_layer("drop").rate == 0.4 and not mine.get_layer("first").trainable
    assert float(mine.optimizer.learning_rate) == 0.5
    assert np.array_equal(mine.get_layer("first").bias.numpy(), bias)
    other = prototype.clone()["model"]
    assert other.get_layer("drop").rate == 0.2 and float(other.optimizer.learning_rate) == pytest.approx(0.01)
    with pytest.raises(torchcow.PathError, match=r"'bias' is a variable of shape .8,., and the value has shape .3,."):
        prototype.clone(**{"model.first.bias": np.ones(3)})
    with pytest.raises(torchcow.PathError, match=r"there is no 'dorp' in 'model' \(Functional\), .*; it has: drop, "):
        prototype.clone(**{"model.dorp.rate": 0.1})
    with pytest.raises(torchcow.PathError, match="'first' is a layer of a model that may be built"):
        prototype.clone(**{"model.first": L.Dense(3)})


def test_a_component_beside_a_model_is_named():
    model = trained(functional)
    with pytest.raises(torchcow.CloneError, match="has a component that cannot be cloned:\n  'lock'"):
        torchcow.Prototype({"model": model, "lock": threading.Lock()})
    model.layers[1].lock = threading.Lock()
    with pytest.raises(torchcow.CloneError) as caught:
        torchcow.Prototype(model)
    lines = str(caught.value).splitlines()
    assert lines[0] == "this Functional has a component that cannot be cloned:"
    assert lines[1] == "  'first.lock' (_thread.lock): TypeError: cannot pickle '_thread.lock' object"
    mine = torchcow.Prototype({"model": model, "lock": threading.Lock()}, drop={"lock", "model.first.lock"}).clone()
    assert fit(mine["model"]) == fit(model)


def test_a_layer_that_says_itself_how_it_is_copied():
    class Own(L.Dense):
        def __deepcopy__(self, memo):
            made = Own(self.units, name=self.name)
            made.build(self._kernel.shape)
            made.note = "copied by itself"
            return made

    model = sequential(Own(4, name="own"), L.Dense(4))
    mine = torchcow.Prototype(model).clone()
    assert mine.get_layer("own").note == "copied by itself"
    assert not hasattr(model.get_layer("own"), "note")


def test_a_list_is_copied_without_tracking_what_is_in_it():
    model = trained(MadeInCall)
    list.append(model.blocks, L.Dense(3))  # behind the back of Keras, which would refuse it now
    mine = torchcow.Prototype(model).clone()
    assert len(mine.blocks) == len(model.blocks) and len(mine._layers) == len(model._layers)


def test_a_clone_can_be_quantized():
    """Which takes variables out of the layers again, and finds them by their identity."""
    model = sequential(L.Dense(8))
    mine = torchcow.Prototype(model).clone()
    mine.quantize("int8")
    assert not any(layer.quantization_mode for layer in model.layers if isinstance(layer, L.Dense))
    model.quantize("int8")
    assert [(v.path, v.dtype) for v in mine.variables] == [(v.path, v.dtype) for v in model.variables]
    assert np.array_equal(mine.predict(X, verbose=0), model.predict(X, verbose=0))


def test_preprocessing_with_modules_and_seeds():
    images = RNG.random((4, 8, 8, 3)).astype("float32")
    model = keras.Sequential([keras.Input((8, 8, 3)), L.RandomFlip(seed=1), L.RandomRotation(0.1, seed=2), L.Flatten()])
    mine = torchcow.Prototype(model).clone()
    for _ in range(3):
        assert torch.equal(mine(images, training=True), model(images, training=True))


def test_a_deep_functional_model():
    x = inputs = keras.Input((8,))
    for _ in range(250):
        x = L.Dense(8)(x)
    model = keras.Model(inputs, x)
    mine = torchcow.Prototype(model).clone()
    assert np.array_equal(mine.predict(X[:, 0], verbose=0), model.predict(X[:, 0], verbose=0))


def test_a_plain_clone_stays_what_deepcopy_makes():
    """torchcow.clone follows Keras's own protocol, which goes by way of its file format."""
    model = trained(MadeInCall)
    outcomes = []
    for function in (copy.deepcopy, torchcow.clone):
        try:
            outcomes.append(("returned", len(function(model).weights)))
        except Exception as error:
            outcomes.append(("raised", type(error)))
    assert outcomes[0] == outcomes[1]
    assert torchcow.Prototype(model).clone().weights
