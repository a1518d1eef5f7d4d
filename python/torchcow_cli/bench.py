# SPDX-License-Identifier: Apache-2.0
"""``torchcow bench``: clones against deep copies on this machine, with models of random weights."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchcow_cli.options import Device, Json, at_least_one
from torchcow_cli.output import Mistake, console, document, escape, seconds, table
from torchcow_cli.turns import Candidate, Turns

if TYPE_CHECKING:
    from torch import nn

TURN = 0.1  # seconds; long enough for many calls, so that one interrupted by the system does not count much


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Use smaller models and fewer rounds; takes a few seconds.")
    ] = False,
    device: Device = "cpu",
    variants: Annotated[
        int, typer.Option(parser=at_least_one, metavar="N", help="How many variants to measure the memory of.")
    ] = 10,
    json: Json = False,
) -> int:
    """Compare clones with deep copies on this machine.

    Measures the time of a copy, the time of a copy followed by a write to every parameter, and the memory of many
    variants. The candidates take turns, and each round gives one ratio; the table shows the median of the ratios and
    the range of their middle half. Exit code 1 if a write to a clone reached its source.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Mistake("bench", f"--device cuda: torch {torch.__version__} sees no CUDA device here; use --device cpu")
    progress = console(stderr=True)
    results = {}
    for name, build in MODELS.items():
        if progress.is_terminal:  # lines, not a moving bar: its thread would disturb the measurement
            progress.print(f"measuring {name} ...")
        torch.manual_seed(0)
        results[name] = _measure(build(quick).to(device), 5 if quick else 11, variants)
    report = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "quick": quick,
        "models": results,
        "notes": _notes(results),
    }
    if json:
        document(report)
    else:
        _show(report)
    return 0 if all(result["isolated"] for result in results.values()) else 1


def _transformer(quick: bool) -> nn.Module:
    """The shapes of GPT-2 (124 M parameters), or smaller ones."""
    from torch import nn

    layers, width, words = (4, 256, 5000) if quick else (12, 768, 50257)
    blocks = [nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True) for _ in range(layers)]
    return nn.Sequential(nn.Embedding(words, width), nn.Embedding(1024, width), *blocks, nn.LayerNorm(width))


def _convolutions(quick: bool) -> nn.Module:
    from torch import nn

    width = 64 if quick else 256
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3)]
    for _ in range(8):
        layers += [nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def _small_layers(quick: bool) -> nn.Module:
    """Many modules with few bytes, the worst case for sharing."""
    from torch import nn

    return nn.Sequential(*(nn.Linear(32, 32) for _ in range(100 if quick else 1000)))


MODELS: dict[str, Callable[[bool], nn.Module]] = {
    "transformer": _transformer,
    "convolutions": _convolutions,
    "small layers": _small_layers,
}


def _measure(model: nn.Module, rounds: int, variants: int) -> dict[str, Any]:
    import copy

    import torch

    import torchcow

    tensors = [*model.parameters(), *model.buffers()]
    cuda = tensors[0].is_cuda

    def timed(act: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def until_done(prepared: Any) -> Any:
            result = act(prepared)
            torch.cuda.synchronize()
            return result

        return until_done if cuda else act

    def write(target: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in target.parameters():
                parameter.add_(1)
        return target

    before = [tensor.detach().clone() for tensor in tensors]
    memory = _memory(model, variants)  # first, as memory that freed copies leave with the allocator hides the growth
    kept = torchcow.clone(model)  # makes every tensor a sharer, as any clone but the first one finds it
    copies = _compare(
        {"deepcopy": (lambda: model, timed(copy.deepcopy)), "clone": (lambda: model, timed(torchcow.clone))},
        rounds,
        TURN,
    )
    writes = _compare(
        {
            "deepcopy": (lambda: None, timed(lambda _: write(copy.deepcopy(model)))),
            "clone": (lambda: None, timed(lambda _: write(torchcow.clone(model)))),
        },
        rounds,
    )
    del kept
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "modules": sum(1 for _ in model.modules()),
        "tensors": len(tensors),
        "copy": copies,
        "copy and write all": writes,
        "memory": memory,
        "isolated": all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True)),
    }


def _compare(candidates: dict[str, Candidate], rounds: int, turn: float = 0.0) -> dict[str, Any]:
    turns = Turns(candidates, turn)
    turns.round()
    turns.forget()
    for _ in range(rounds):
        turns.round()
    low, middle, high = statistics.quantiles(turns.ratios("deepcopy", "clone"), n=4)
    return {
        "seconds": {
            name: {
                "median": statistics.median(values),
                "minimum": min(values),
                "maximum": max(values),
                "first": statistics.median(turns.first[name]),
            }
            for name, values in turns.times.items()
        },
        "rounds": rounds,
        "deepcopy / clone": {"median": middle, "lower quartile": low, "upper quartile": high},
    }


def _memory(model: nn.Module, variants: int) -> dict[str, Any]:
    """Bytes of the model and its variants: those that the engine reports, and the growth of the process or device."""
    import torch

    import torchcow

    start = _used(model)
    clones = [torchcow.clone(model) for _ in range(variants)]
    cloned, after_cloning = torchcow.memory(model, *clones), _used(model)
    with torch.no_grad():
        for index, clone in enumerate(clones):
            parameters = list(clone.parameters())
            parameters[index % len(parameters)].add_(1)
    written = torchcow.memory(model, *clones)
    return {
        "variants": variants,
        "as deep copies": cloned.logical,
        "after cloning": cloned.unique,
        "after one write each": written.unique,
        "growth by cloning, measured": after_cloning - start,
        "growth by writing, measured": _used(model) - after_cloning,
    }


def _used(model: nn.Module) -> int:
    import torch

    if next(model.parameters()).is_cuda:
        return int(torch.cuda.memory_allocated())
    resident_pages = Path("/proc/self/statm").read_text().split()[1]
    return int(resident_pages) * os.sysconf("SC_PAGESIZE")


def _notes(results: dict[str, dict[str, Any]]) -> list[str]:
    notes = []
    busy, processors = os.getloadavg()[0], os.cpu_count() or 1
    if busy > processors:
        notes.append(f"other programs were running on this machine (load {busy:.1f} on {processors} processors)")
    for name, result in results.items():
        for what in ("copy", "copy and write all"):
            ratio = result[what]["deepcopy / clone"]
            if ratio["upper quartile"] > 1.25 * ratio["lower quartile"]:
                notes.append(f"{name}, {what}: the rounds differ by more than a quarter, so its ratio is a rough one")
        if not result["isolated"]:
            notes.append(f"{name}: WRONG, a write to a clone changed the source")
    return notes


def _show(report: dict[str, Any]) -> None:
    from torchcow.report.table import size

    out = console()
    size_of_run = "quick" if report["quick"] else "full"
    out.print(
        escape(f"torch {report['torch']} on {report['device']}, {report['threads']} threads, {size_of_run} run\n")
    )
    rows, memory = [], []
    for name, result in report["models"].items():
        for what in ("copy", "copy and write all"):
            times, ratio = result[what]["seconds"], result[what]["deepcopy / clone"]
            rows.append(
                [
                    name,
                    what,
                    seconds(times["deepcopy"]["median"]),
                    seconds(times["clone"]["median"]),
                    seconds(times["clone"]["first"]),
                    f"{ratio['median']:.2f}",
                    f"{ratio['lower quartile']:.2f} to {ratio['upper quartile']:.2f}",
                ]
            )
        taken = result["memory"]
        memory.append(
            [
                name,
                *(size(taken[key]) for key in ("as deep copies", "after cloning", "after one write each")),
                *(size(taken[f"growth by {act}, measured"]) for act in ("cloning", "writing")),
            ]
        )
    columns = ["model", "", "deepcopy", "clone", "clone, cold", "deepcopy / clone", "middle half"]
    out.print(table("Time, median of the rounds", columns, rows, left={""}))
    title = f"Tensor memory of a model and {report['models']['transformer']['memory']['variants']} variants"
    columns = ["model", "as deep copies", "cloned", "one write each", "measured: cloning", "measured: writing"]
    out.print(table(title, columns, memory))
    for note in report["notes"]:
        out.print(f"[weak]note[/] {escape(note)}")
