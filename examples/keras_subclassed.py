# SPDX-License-Identifier: Apache-2.0
"""A subclassed Keras model that makes its layers in ``call``: cloned whole, where Keras itself gives up.

Before its first call such a model has no layers, and nothing to write into a config. ``keras.models.clone_model``
fails with it, or would give fresh weights. A clone of a prototype has the layers, the weights, the optimizer with its
moments, and the losses. Its training continues as that of the source would.

Look at the losses: the clone continues where the source stopped, exactly as the source would have. The source keeps
every bit, and all models share the encoder, which is not trained.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # before keras is imported

import keras
import numpy as np

import torchcow


class Grows(keras.Model):
    """An encoder that is not trained, and more layers, which are made at the first call to fit the data."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([keras.layers.Dense(256, activation="tanh") for _ in range(2)])
        self.encoder.trainable = False
        self.more = []

    def call(self, x):
        """Return predictions of shape (batch, 1)."""
        if not self.more:
            self.more = [keras.layers.Dense(2 * x.shape[-1], activation="tanh"), keras.layers.Dense(1)]
        x = self.encoder(x)
        for layer in self.more:
            x = layer(x)
        return x


def train(model: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int) -> list[float]:
    """Train and return the loss of each epoch."""
    return model.fit(x, y, batch_size=64, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def main(epochs: int = 4, seed: int = 0) -> dict[str, Any]:
    """Train a model, clone it, train the clone and then the source; return the ``losses`` and what was found."""
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    x = random.normal(size=(256, 16)).astype("float32")
    y = np.sin(x[:, :1]) + x[:, 1:2]
    source = Grows()
    source.compile(optimizer=keras.optimizers.Adam(3e-3), loss="mse")
    losses = {"source at first": train(source, x, y, epochs)}

    refused = ""
    try:
        keras.models.clone_model(source)
    except Exception as error:
        refused = str(error)
        print(f"keras.models.clone_model: {type(error).__name__}: {refused[:70]} ...")

    prototype = torchcow.Prototype(source, "grows")
    clone, slow = prototype.clone(), prototype.clone(**{"optimizer.learning_rate": 1e-4})
    losses["clone"] = train(clone, x, y, epochs)
    losses["slow clone"] = train(slow, x, y, epochs)
    untouched = not torchcow.diff(prototype, source).names("different")
    losses["source"] = train(source, x, y, epochs)
    for who, loss in losses.items():
        print(f"{who:15} {'  '.join(f'{one:.6f}' for one in loss)}")
    print(f"The source was not touched by the training of its clones: {untouched}")

    memory = torchcow.memory(prototype, source, clone, slow)
    shared = torchcow.explain(clone).shared
    print(f"\n{memory}")
    return {"losses": losses, "refused": refused, "untouched": untouched, "shared": shared, "memory": memory}


if __name__ == "__main__":
    main()
