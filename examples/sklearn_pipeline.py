# SPDX-License-Identifier: Apache-2.0
"""A scikit-learn pipeline and a torch model in one prototype: parts that belong together are cloned together.

A fitted pipeline scales and projects images of digits, and a network classifies its output. Both are fields of one
dataclass, so each clone has a pipeline that fits its network. A variant can be trained further, fitted to other data,
or get another parameter by dotted path (``"columns.pca.whiten"``); the other variants do not change.

Look at the last table: the network's weights are shared. The NumPy arrays of the pipeline cannot be shared; they count
as private in each variant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

import torchcow


@dataclass
class Classifier:
    """From images to digits."""

    columns: Pipeline
    model: nn.Module

    def fit(self, images: np.ndarray, digits: np.ndarray, steps: int) -> None:
        """Train the network on what the pipeline makes of the images."""
        x, y = torch.from_numpy(self.columns.transform(images)).float(), torch.from_numpy(digits)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(self.model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()

    def accuracy(self, images: np.ndarray, digits: np.ndarray) -> float:
        """Return the share of images that are recognized."""
        with torch.no_grad():
            logits = self.model(torch.from_numpy(self.columns.transform(images)).float())
        return float(np.mean(logits.argmax(1).numpy() == digits))


def main(steps: int = 40, seed: int = 0) -> dict[str, Any]:
    """Fit, make variants, and return the accuracies and the memory of the parts."""
    torch.manual_seed(seed)
    images, digits = load_digits(return_X_y=True)
    columns = Pipeline([("scale", StandardScaler()), ("pca", PCA(24, random_state=seed))]).fit(images[:800])
    network = nn.Sequential(nn.Linear(24, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    classifier = Classifier(columns, network)
    classifier.fit(images[:800], digits[:800], steps)
    prototype = torchcow.Prototype(classifier, "digits")

    # A camera with another contrast: one variant is used as it is, the pipeline of the other is fitted again.
    camera, test = images * 0.3 + 6, slice(1200, None)
    plain, fitted, whitened = prototype.clone(), prototype.clone(), prototype.clone(**{"columns.pca.whiten": True})
    fitted.columns.named_steps["scale"].fit(camera[800:1200])
    accuracy = {
        "prototype, old camera": prototype.clone().accuracy(images[test], digits[test]),
        "plain, new camera": plain.accuracy(camera[test], digits[test]),
        "fitted, new camera": fitted.accuracy(camera[test], digits[test]),
        "plain, old camera": plain.accuracy(images[test], digits[test]),
    }
    for what, share in accuracy.items():
        print(f"{what}: {share:.1%}")

    variants = [plain, fitted, whitened]
    memory = torchcow.memory(prototype, *variants)
    parts = memory.by_module()
    print(f"\n{memory}\n")
    for name, part in parts.items():
        print(f"All {name}: deep copies {part.logical / 1e3:.0f} kB, private {part.private / 1e3:.0f} kB")
    whiten = [one.columns.named_steps["pca"].whiten for one in variants]
    return {"accuracy": accuracy, "memory": memory, "parts": parts, "whiten": whiten}


if __name__ == "__main__":
    main()
