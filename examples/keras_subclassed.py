"""A subclassed Keras model that makes its layers in ``call``: cloned whole, where Keras itself gives up.

Such a model has no layers before it is called, and nothing that could be written into a config.
``keras.models.clone_model`` fails with it, or would give fresh weights. A clone of a prototype has the layers, the
weights, the optimizer with its moments, and the losses; it is trained on as if it were the source.

Look at the losses: the clone goes on where the source stopped, exactly as the source would have. The source keeps every
bit, and both share the layer that is not trained.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # before keras is imported

import keras
import numpy as np

import torchcow


class Grows(keras.Model):
    """Its layers are made at the first call, when the number of features is known."""

    def __init__(self, outputs: int = 1):
        super().__init__()
        self.outputs = outputs
        self.body = []

    def call(self, x):
        """Return predictions of shape (batch, outputs)."""
        if not self.body:
            self.body.append(keras.layers.Dense(32 * x.shape[-1], activation="tanh", trainable=False))
            self.body.append(keras.layers.Dense(64, activation="tanh"))
            self.body.append(keras.layers.Dense(self.outputs))
        for layer in self.body:
            x = layer(x)
        return x


def train(model: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int) -> list[float]:
    """Train and return the loss of each epoch."""
    return model.fit(x, y, batch_size=64, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def main(epochs: int = 4, seed: int = 0) -> dict[str, Any]:
    """Train a model, clone it, train the clone and then the source, and return ``losses`` and what is shared."""
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    x = random.normal(size=(256, 16)).astype("float32")
    y = np.sin(x[:, :1]) + x[:, 1:2]
    source = Grows()
    source.compile(optimizer=keras.optimizers.Adam(3e-3), loss="mse")
    losses = {"source": train(source, x, y, epochs)}

    try:
        keras.models.clone_model(source)
        refused = ""
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
    print(f"keras.models.clone_model: {refused.splitlines()[0][:100] if refused else 'fresh weights'}")

    prototype = torchcow.Prototype(source, "grows")
    clone = prototype.clone(**{"optimizer.learning_rate": 1e-3})
    print("learning rate of the clone:", float(clone.optimizer.learning_rate))
    return {"losses": losses}


if __name__ == "__main__":
    main()
