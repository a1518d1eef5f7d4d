# SPDX-License-Identifier: Apache-2.0
"""``torchcow demo``: the options, the errors, and the order of the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from torchcow_cli.options import Device, Json, at_least_one
from torchcow_cli.output import Mistake, document, only_a_document

if TYPE_CHECKING:
    from torchcow_cli.demo.report import Findings


def demo(
    variants: Annotated[int, typer.Option(parser=at_least_one, metavar="N", help="How many clones to make.")] = 50,
    device: Device = "cpu",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="'smollm2', 'tiny' (no download, a few seconds), or a folder with a transformers model.",
        ),
    ] = "smollm2",
    seed: Annotated[int, typer.Option(help="The seed of the noise, and of the weights of the tiny model.")] = 0,
    json: Json = False,
) -> int:
    """Make many variants of one language model, and check them.

    Clones the model, writes different weights into each clone, and lets some of them generate text. Exit code 1 if a
    bit of the original model has changed.
    """
    from torchcow_cli.demo import report
    from torchcow_cli.demo.models import DemoError

    try:
        with only_a_document(json):
            findings = _run(variants, device, model, seed)
    except DemoError as error:
        raise Mistake("demo", str(error)) from error
    if json:
        content = report.document(findings)
        document(content)
        return 0 if content["passed"] else 1
    return 0 if report.show(findings) else 1


def _run(count: int, device: str, model: str, seed: int) -> Findings:
    import torchcow
    from torchcow_cli.demo import evidence, models, variants
    from torchcow_cli.demo.report import Findings, Steps

    load = models.find(model, device)
    with Steps() as steps:
        steps.begin(f"load {model}")
        base = load(seed)
        fingerprint_before = evidence.fingerprint(base.model)
        base_text = base.language.generate(base.model, variants.PROMPT, base.tokens)

        tick = steps.begin("clone", count)
        spawned = variants.spawn(base, count, tick)
        all_models = [base.model, *(variant.model for variant in spawned.variants)]
        cloned = torchcow.memory(*all_models)

        tick = steps.begin("write", count)
        variants.write(base, spawned.variants, seed, tick)
        written = torchcow.memory(*all_models)

        speakers = spawned.variants[: len(variants.LESSONS) + 2]
        tick = steps.begin("generate", len(speakers))
        texts = []
        for variant in speakers:
            texts.append(base.language.generate(variant.model, variants.PROMPT, base.tokens))
            tick()

        tick = steps.begin("check", count)
        changed = []
        digests = set()
        for variant in spawned.variants:
            names = evidence.changed(base.model, variant.model)
            changed.append(names)
            digests.add(evidence.fingerprint(variant.model, names))
            tick()
        fingerprint_after = evidence.fingerprint(base.model)

    return Findings(
        base=base,
        spawned=spawned,
        cloned=cloned,
        written=written,
        base_text=base_text,
        texts=texts,
        fingerprint_before=fingerprint_before,
        fingerprint_after=fingerprint_after,
        changed=changed,
        distinct=len(digests),
    )
