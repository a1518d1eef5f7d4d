# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def _device(text: str) -> str:
    if text not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got '{text}'")
    return text


Device = Annotated[str, typer.Option(parser=_device, metavar="[cpu|cuda]", help="The device of the models.")]


def at_least_one(text: str | int) -> int:
    """Parse the value of an option that counts from 1."""
    return _whole_number(1, text)


def at_least_zero(text: str | int) -> int:
    """Parse the value of an option that counts from 0."""
    return _whole_number(0, text)


def _whole_number(least: int, text: str | int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise typer.BadParameter(f"expected a whole number of at least {least}, got '{text}'")
    return value
