# SPDX-License-Identifier: Apache-2.0
"""The same questions on a CUDA device: clones, first writes, streams, capacity, and isolation.

``make gpu`` runs this among other things. Alone: ``python benchmarks/bench_cuda.py [--out FILE] [--seconds N]``. With
``--device cpu --tiny`` it is a rehearsal, which says nothing about a GPU.

Device work is timed by CUDA events, after a round that fills the caching allocator. Bandwidths count a copy's bytes
once (one GiB copied in one second is 1.07 GB/s), so the same memory traffic gives the same number for ``clone``,
``copy_`` and a first write. Candidates take turns in each round.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch

import baselines
import eight_billion
import machine
import models
import record
import torchcow
import zoo
from device import Candidates, Device
from times import Times

Rows = Iterator[record.Row]
MIB = 1 << 20


def rows(times: Times, **labels: Any) -> Rows:
    reference = next(iter(times.seconds))
    for name in times.seconds:
        measured = {"seconds": times.spread(name), "ratio": times.ratio(name, reference)}
        yield {**labels, "candidate": name, "rounds": times.rounds, **measured}


def optimizers(device: Device) -> Rows:
    """Does training a clone with default settings change the source? The oracle is a deep copy."""
    every: dict[str, dict[str, Any]] = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Rprop": {"lr": 0.01}}
    for name in ("Adam", "AdamW", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "RMSprop"):
        every[name] = {"lr": 0.01}
    for name, options in every.items():
        row: record.Row = {"optimizer": name}
        for title in ("torchcow.clone", "_lazy_clone in the memo"):
            torch.manual_seed(0)
            source = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4))).to(device.name)
            before = copy.deepcopy(source.state_dict())
            case = zoo.Case("", source, type(source), {})
            variant = baselines.BASELINES[title].prepare(case, source)()
            optimizer = getattr(torch.optim, name)(variant.parameters(), **options)
            try:
                for _ in range(2):
                    optimizer.zero_grad()
                    variant(torch.ones(8, 256, device=device.name)).square().mean().backward()
                    optimizer.step()
                device.wait()
            except RuntimeError as error:
                row[title] = f"fails: {error}".splitlines()[0]
                continue
            after = source.state_dict()
            row[title] = "isolated" if all(torch.equal(before[key], after[key]) for key in before) else "CORRUPTED"
        yield row
        assert row["torchcow.clone"] == "isolated", f"{name}, a clone is trained: {row['torchcow.clone']}"


def moved(case: zoo.Case, device: Device) -> zoo.Case:
    def build() -> torch.nn.Module:
        with torch.device(torch.get_default_device() if torch.get_default_device().type == "meta" else device.name):
            return case.build()

    inputs = {name: tensor.to(device.name) for name, tensor in case.inputs.items()}
    return dataclasses.replace(case, model=case.model.to(device.name), build=build, inputs=inputs)


def clones(device: Device) -> Rows:
    """A clone against other methods, until the device is done."""
    for name in ("gpt2", "resnet", "perceptron"):
        try:
            case = moved(zoo.CASES[name](device.tiny), device)
        except SkipTest as reason:
            print(f"clones of {name} are left out: {reason}", file=sys.stderr)
            continue
        candidates: Candidates = {}
        for title, baseline in baselines.available().items():
            if title in ("pickle", "torch.save, torch.load") and name == "gpt2":
                continue  # seconds: they go through the memory of the host
            own = copy.deepcopy(case.model)
            make = baseline.prepare(case, own)
            baselines.agree(title, baseline, case, own, make)
            candidates[title] = (lambda: None, lambda _, make=make: make())
        yield from rows(device.compare(candidates, device.until_done, 4.0), model=case.name)
        device.free()


def sharing(device: Device) -> Rows:
    """Host time to share a list of 1000 tensors of 1 MiB: the device has nothing to do."""
    count = 10 if device.tiny else 1000
    source = [torch.ones(MIB // 4, device=device.name) for _ in range(count)]
    copies: Candidates = {
        "copy.deepcopy": (lambda: None, lambda _: copy.deepcopy(source)),
        "torchcow.clone": (lambda: None, lambda _: torchcow.clone(source)),
    }
    yield from rows(device.compare(copies, device.until_returned, 2.0), tensors=count)


def first_writes(device: Device) -> Rows:
    """First writes (copy, steal, skip) to one tensor, beside torch's own operators for the same bytes."""
    for mib in (1,) if device.tiny else (1, 16, 64, 256, 1024):
        base = torch.ones((mib * MIB) // (64 if device.tiny else 4), device=device.name)
        target = torch.empty_like(base)

        def fresh(base: torch.Tensor = base) -> torch.Tensor:
            return torchcow.clone(base)

        def alone(base: torch.Tensor = base) -> torch.Tensor:
            source = torch.ones_like(base)
            torchcow.clone(source)
            return source

        def private(target: torch.Tensor = target) -> torch.Tensor:
            return target

        candidates: Candidates = {
            "copy_ into memory that is there": (private, lambda t, base=base: t.copy_(base)),
            "torch clone": (private, lambda _, base=base: base.clone()),
            "copy": (fresh, torchcow.materialize),
            "torch add_": (private, lambda t: t.add_(1)),
            "torch clone, add_": (private, lambda _, base=base: base.clone().add_(1)),
            "copy, add_": (fresh, lambda t: t.add_(1)),
            "steal, add_": (alone, lambda t: t.add_(1)),
            "torch empty_like, fill_": (private, lambda t: torch.empty_like(t).fill_(1)),
            "skip, fill_": (fresh, lambda t: t.fill_(1)),
        }
        yield from rows(device.compare(candidates, device.by_events, 1.5), size=f"{mib} MiB", bytes=base.nbytes)
        device.wait()
        assert bool((base == 1).all()), "a first write has changed its source"


def many_small(device: Device) -> Rows:
    """One multi-tensor write to many small shared tensors, beside copying them all first."""
    for count, kib in ((10, 4),) if device.tiny else ((1000, 64), (10_000, 4), (150, 1024)):
        source = [torch.ones(kib << 8, device=device.name) for _ in range(count)]
        candidates: Candidates = {
            "torch clone each, _foreach_add_": (
                lambda: None,
                lambda _, source=source: torch._foreach_add_([t.clone() for t in source], 1.0),
            ),
            "first write by _foreach_add_": (
                lambda source=source: torchcow.clone(source),
                lambda x: torch._foreach_add_(x, 1.0),
            ),
            "_foreach_add_": (
                lambda source=source: [t.clone() for t in source],
                lambda x: torch._foreach_add_(x, 1.0),
            ),
        }
        for timer in (device.by_events, device.until_returned):
            what = "device" if timer == device.by_events else "host"
            yield from rows(device.compare(candidates, timer, 1.5), tensors=f"{count} of {kib} KiB", time=what)
        device.wait()
        assert all(bool((t == 1).all()) for t in source)


def streams(device: Device) -> Rows:
    """The first writes of clones on side streams at once, until all are done; a deep copy has them copied before."""
    if not device.cuda:
        return
    source = [torch.ones(16 * MIB // 4, device="cuda") for _ in range(16)]
    for count in (1, 2, 4, 8):
        sides = [torch.cuda.Stream() for _ in range(count)]

        def run(copier: Callable[[Any], Any], sides: list[torch.cuda.Stream] = sides) -> list[Any]:
            kept = []
            for number, side in enumerate(sides):
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    kept.append(copier(source))
                    for tensor in kept[-1]:
                        tensor.add_(number)
            for side in sides:
                torch.cuda.current_stream().wait_stream(side)
            return kept

        for number, clone in enumerate(run(torchcow.clone)):
            assert all(bool((t == 1 + number).all()) for t in clone), f"clone {number} on its stream is wrong"
        device.wait()
        candidates: Candidates = {
            "copy.deepcopy": (lambda: None, lambda _, run=run: run(copy.deepcopy)),
            "torchcow.clone": (lambda: None, lambda _, run=run: run(torchcow.clone)),
        }
        yield from rows(device.compare(candidates, device.by_events, 1.0), streams=count)
        assert all(bool((t == 1).all()) for t in source)


def training(device: Device) -> Rows:
    """Clone a GPT, train its last parts for so many steps, drop it: all of that, until the device is done."""
    from bench_first_write import use

    torch.manual_seed(0)
    size = (2, 64, 4, 257) if device.tiny else (12, 768, 12, 8192)
    model = models.GPT(*size, context=64, tied=False).to(device.name)
    inputs = torch.randint(0, 257, (2, 16), device=device.name)
    total = sum(parameter.nbytes for parameter in model.parameters())
    for steps in (0, 1) if device.tiny else (0, 1, 10):
        for fraction in (0.0, 0.25, 0.5, 1.0):
            written = sum(p.nbytes for p in use(copy.deepcopy, model, inputs, fraction, 0))
            candidates: Candidates = {
                title: (lambda: None, lambda _, c=c, f=fraction, s=steps: use(c, model, inputs, f, s))
                for title, c in (("copy.deepcopy", copy.deepcopy), ("torchcow.clone", torchcow.clone))
            }
            times = device.compare(candidates, device.until_done, 0.8)
            yield from rows(times, steps=steps, fraction=written / total)


def reading(device: Device) -> Rows:
    """Forward passes of a deep copy, a source and its clone."""
    for name, build in models.MODELS.items():
        model, inputs = build(device.tiny)
        model, inputs = model.to(device.name), inputs.to(device.name)
        plain, clone = copy.deepcopy(model), torchcow.clone(model)
        with torch.no_grad():
            assert torch.equal(plain(inputs), clone(inputs))
            candidates: Candidates = {
                title: (lambda one=one: one, lambda m, inputs=inputs: m(inputs))
                for title, one in (("deep copy", plain), ("source", model), ("clone", clone))
            }
            yield from rows(device.compare(candidates, device.by_events, 1.0, most=50), model=name)


def capacity(device: Device) -> Rows:
    """How many variants of an 8B-shaped model fit, each with another percent of its weights written."""
    size = {"layers": 2, "width": 64, "inner": 224, "vocabulary": 999} if device.tiny or not device.cuda else {}
    most = 4 if size else 1000
    for candidate, fraction in (("copy.deepcopy", 0.01), ("torchcow.clone", 0.01), ("torchcow.clone", 0.0)):
        device.free()
        start = device.in_use()
        model = eight_billion.build(device.name, **size)
        model_bytes = sum(tensor.nbytes for tensor in model.values())
        copier = copy.deepcopy if candidate == "copy.deepcopy" else torchcow.clone
        variants: list[dict[str, torch.Tensor]] = []
        names = [eight_billion.part(model, fraction, layer) for layer in range(eight_billion.LAYERS)]
        edited = sum(model[name].nbytes for name in names[0])
        full = False
        with device.leaving(0.95):
            for number in range(100 if fraction == 0.0 else most):
                try:
                    variant = copier(model)
                    for name in names[number % len(names)]:
                        variant[name].add_(number + 1)
                except torch.cuda.OutOfMemoryError:
                    full = True
                    break
                variants.append(variant)
            variant = None
        used = device.in_use() - start
        for tensor in (model["embed"], model["head"], model[next(iter(names[0]), "norm")]):
            assert bool((tensor == 1).all()), f"{candidate}: a variant's edit has changed the model"
        if variants and names[0]:
            last = variants[-1][names[(len(variants) - 1) % len(names)][0]]
            assert bool((last == torch.full_like(last[:1, :1], 1).add_(len(variants))).all())
        row = {"candidate": candidate, "model_bytes": model_bytes, "edited_bytes": edited, "variants": len(variants)}
        yield {**row, "full": full, "bytes": used, "predicted": model_bytes + len(variants) * edited}
        model, variants, tensor, last = {}, [], None, None


PARTS: dict[str, Callable[[Device], Rows]] = {
    part.__name__: part
    for part in (first_writes, sharing, many_small, streams, capacity, optimizers, reading, clones, training)
}


def measure(device: Device, seconds: float, store: Callable[[dict[str, Any]], None]) -> dict[str, list[record.Row]]:
    """Run the parts. A part that fails, or has no time left, has an error among its rows; the others still run."""
    begin = time.monotonic()
    tables: dict[str, list[record.Row]] = {}
    for name, part in PARTS.items():
        tables[name] = []
        if time.monotonic() - begin > seconds:
            tables[name].append({"error": "not started: out of time"})
        else:
            try:
                for row in part(device):
                    tables[name].append(row)
                    print(name, json.dumps(record.rounded(row)), flush=True)
            except Exception as error:
                tables[name].append({"error": f"{type(error).__name__}: {error}"})
        if tables[name] and "error" in tables[name][-1]:
            print(name, tables[name][-1]["error"], file=sys.stderr, flush=True)
        device.free()
        store(tables)
    return tables


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results there, as JSON")
    parser.add_argument("--seconds", type=float, default=150, help="start no further part after so many seconds")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--tiny", action="store_true", help="small, and one round: does each part work?")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device", file=sys.stderr)
        return 2
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu is a rehearsal: add --tiny")
    device = Device(options.device, options.tiny)
    head = record.document("tiny" if options.tiny else "full", {})
    head["machine"] |= machine.device() if device.cuda else {}

    def store(tables: dict[str, list[record.Row]]) -> None:
        if options.out is not None:
            record.write(options.out.stem, head | {"tables": tables}, options.out.parent)

    tables = measure(device, options.seconds, store)
    return 1 if any("error" in row for rows_ in tables.values() for row in rows_) else 0


if __name__ == "__main__":
    raise SystemExit(main())
