"""The command line: ``python -m torchcow demo`` and ``python -m torchcow run``."""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torchcow
from torchcow.demo.models import DemoError

DEMO = """\
Clone one language model many times, write different weights into each clone, let some of them speak, and check
that the model they came from has not changed by a bit."""

RUN = """\
Run a Python program in which copy.deepcopy shares tensor memory copy-on-write; nothing in it needs to change."""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 if the demo found a wrong bit, or 2 if it could not run."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "run":
        return _run(options)
    try:
        return _demo(options)
    except DemoError as error:
        print(f"{parser.prog} demo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m torchcow", description="Copy-on-write clones of PyTorch objects.")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    demo = commands.add_parser("demo", help="many variants of one language model", description=DEMO)
    demo.add_argument("--variants", type=_count, default=50, metavar="N", help="how many clones to make (default 50)")
    demo.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model lives (default cpu)")
    demo.add_argument(
        "--model",
        default="smollm2",
        metavar="NAME",
        help="'smollm2' (default), 'tiny' (no download, a few seconds), or a folder with a transformers model",
    )
    demo.add_argument("--seed", type=int, default=0, help="what the noise and the tiny model start from (default 0)")
    run = commands.add_parser("run", help="a program of yours, with torchcow.patch() on", description=RUN)
    run.add_argument("-m", dest="module", action="store_true", help="the program is a module, as for python -m")
    run.add_argument("program", help="a script, or with -m a module")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="what the program gets")
    return parser


def _run(options: argparse.Namespace) -> int:
    torchcow.patch()
    sys.argv = [options.program, *options.arguments]
    if options.module:
        sys.path[0] = ""
        runpy.run_module(options.program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(options.program).resolve().parent)
        runpy.run_path(options.program, run_name="__main__")
    return 0


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return count


def _demo(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("rich") is None:
        raise DemoError("the report needs the package rich: pip install 'torchcow[demo]'")
    from torchcow.demo import evidence, models, variants
    from torchcow.demo.report import Findings, Steps, show

    load = models.find(options.model, options.device)
    with Steps() as steps:
        steps.begin(f"load {options.model}")
        prototype = load(options.seed)
        before = evidence.fingerprint(prototype.model)
        base_says = prototype.language.generate(prototype.model, variants.PROMPT, prototype.tokens)

        tick = steps.begin("clone", options.variants)
        spawned = variants.spawn(prototype, options.variants, tick)
        models_together = [prototype.model, *(variant.model for variant in spawned.variants)]
        cloned = torchcow.memory(*models_together)

        tick = steps.begin("write", options.variants)
        variants.write(prototype, spawned.variants, options.seed, tick)
        written = torchcow.memory(*models_together)

        speakers = spawned.variants[: len(variants.LESSONS) + 2]
        tick = steps.begin("generate", len(speakers))
        says = []
        for variant in speakers:
            says.append(prototype.language.generate(variant.model, variants.PROMPT, prototype.tokens))
            tick()

        tick = steps.begin("check", options.variants)
        changed = []
        digests = set()
        for variant in spawned.variants:
            names = evidence.changed(prototype.model, variant.model)
            changed.append(names)
            digests.add(evidence.fingerprint(variant.model, names))
            tick()
        after = evidence.fingerprint(prototype.model)

    findings = Findings(
        prototype=prototype,
        spawned=spawned,
        cloned=cloned,
        written=written,
        base_says=base_says,
        says=says,
        before=before,
        after=after,
        changed=changed,
        distinct=len(digests),
    )
    return 0 if show(findings) else 1
