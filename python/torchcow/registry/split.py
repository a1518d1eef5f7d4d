# SPDX-License-Identifier: Apache-2.0
"""``Split``: passes each call to one of several versions, by key or at random, and counts the calls."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from typing import Any

from torchcow.errors import RegistryError
from torchcow.registry.fork import Lock
from torchcow.registry.proxy import Proxy


class Split:
    """An A/B trial that is called like the model; ``split(x, key=user)`` gives each user always the same version.

    With a key, the choice depends only on key, seed, targets and weights, in any process and at any time. A changed
    weight moves as few keys as possible. The keys ``1`` and ``"1"`` are the same key. Without a key, the choice is
    random, and repeatable with a seed. Made by :meth:`torchcow.Registry.split`.

    Example:
        >>> import torch, torchcow
        >>> registry = torchcow.Registry()
        >>> _ = registry.add("model", torch.nn.Linear(1, 1), tags=["production"])
        >>> _ = registry.add("model", torch.nn.Linear(1, 1), tags=["candidate"])
        >>> split = registry.split({"production": 0.9, "candidate": 0.1})
        >>> _ = [split(torch.zeros(1), key=user) for user in range(100)]
        >>> sum(split.counts.values()), split.counts["candidate"] < 30
        (100, True)
    """

    def __init__(self, proxies: Mapping[str, Proxy], weights: Mapping[str, float], seed: int | None):
        if not weights:
            raise RegistryError("a split needs at least one target, got none")
        for target, weight in weights.items():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight <= 0:
                raise RegistryError(f"weights are positive and finite; got {weight!r} for {target!r}")
        self._proxies = dict(proxies)
        self._weights = dict(weights)
        self._seed = seed
        self._random = random.Random(seed)
        self._lock = Lock()
        self._counts = dict.fromkeys(weights, 0)

    def __call__(self, *args: Any, key: str | int | None = None, **kwargs: Any) -> Any:
        """Call one of the models."""
        target = self.choose(key)
        with self._lock.held():
            self._counts[target] += 1
        return self._proxies[target](*args, **kwargs)

    @property
    def counts(self) -> dict[str, int]:
        """The number of calls of each target."""
        with self._lock.held():
            return dict(self._counts)

    def choose(self, key: str | int | None = None) -> str:
        """Return the target of a call, without calling.

        Raises:
            RegistryError: the key is neither a text nor a whole number.
        """
        if key is None:
            with self._lock.held():
                return self._random.choices(list(self._weights), list(self._weights.values()))[0]
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise RegistryError(f"a key is a text or a whole number, got {key!r} of type {type(key).__qualname__}")
        return min(self._weights, key=lambda target: (self._distance(target, str(key)), target))

    def _distance(self, target: str, key: str) -> float:
        """Exponentially distributed with rate ``weight``: each target has the least distance in proportion to it."""
        text = "\0".join(("" if self._seed is None else str(self._seed), target, key))
        number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        return -math.log((number + 0.5) / 2**64) / self._weights[target]
