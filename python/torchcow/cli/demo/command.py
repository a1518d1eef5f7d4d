"""``python -m torchcow demo``: the options, the errors, and the order of the steps of ``torchcow.cli.demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from torchcow.cli.output import Json, Mistake, document, only_a_document

if TYPE_CHECKING:
    from torchcow.cli.demo.report import Findings


def _device(text: str) -> str:
    if text not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got '{text}'")
    return text


#: Where tensors live.
Device = Annotated[str, typer.Option(parser=_device, metavar="[cpu|cuda]", help="Where the models live.")]


def count(text: str | int) -> int:
    """The value of an option that counts what there has to be."""
    return _at_least(1, text)


def number(text: str | int) -> int:
    """The value of an option that counts what there need not be."""
    return _at_least(0, text)


def _at_least(least: int, text: str | int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise typer.BadParameter(f"expected a whole number of at least {least}, got '{text}'")
    return value


def demo(
    variants: Annotated[int, typer.Option(parser=count, metavar="N", help="How many clones to make.")] = 50,
    device: Device = "cpu",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="'smollm2', 'tiny' (no download, a few seconds), or a folder with a transformers model.",
        ),
    ] = "smollm2",
    seed: Annotated[int, typer.Option(help="What the noise and the tiny model start from.")] = 0,
    json: Json = False,
) -> int:
    """Make many variants of one language model, and check them.

    The model is cloned, different weights are written into each clone, and some of them speak. The model they came
    from must not have changed by a bit; exit code 1 if it has.
    """
    from torchcow.cli.demo import report
    from torchcow.cli.demo.models import DemoError

    try:
        with only_a_document(json):
            findings = _find_out(variants, device, model, seed)
    except DemoError as error:
        raise Mistake("demo", str(error)) from error
    if json:
        told = report.document(findings)
        document(told)
        return 0 if told["passed"] else 1
    return 0 if report.show(findings) else 1


def _find_out(count: int, device: str, model: str, seed: int) -> Findings:
    import torchcow
    from torchcow.cli.demo import evidence, models, variants
    from torchcow.cli.demo.report import Findings, Steps

    load = models.find(model, device)
    with Steps() as steps:
        steps.begin(f"load {model}")
        prototype = load(seed)
        before = evidence.fingerprint(prototype.model)
        base_says = prototype.language.generate(prototype.model, variants.PROMPT, prototype.tokens)

        tick = steps.begin("clone", count)
        spawned = variants.spawn(prototype, count, tick)
        models_together = [prototype.model, *(variant.model for variant in spawned.variants)]
        cloned = torchcow.memory(*models_together)

        tick = steps.begin("write", count)
        variants.write(prototype, spawned.variants, seed, tick)
        written = torchcow.memory(*models_together)

        speakers = spawned.variants[: len(variants.LESSONS) + 2]
        tick = steps.begin("generate", len(speakers))
        says = []
        for variant in speakers:
            says.append(prototype.language.generate(variant.model, variants.PROMPT, prototype.tokens))
            tick()

        tick = steps.begin("check", count)
        changed = []
        digests = set()
        for variant in spawned.variants:
            names = evidence.changed(prototype.model, variant.model)
            changed.append(names)
            digests.add(evidence.fingerprint(variant.model, names))
            tick()
        after = evidence.fingerprint(prototype.model)

    return Findings(
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
