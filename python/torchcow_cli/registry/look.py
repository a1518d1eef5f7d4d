# SPDX-License-Identifier: Apache-2.0
"""The commands that only look: ``ls``, ``log``, ``show`` and ``diff``."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer

from torchcow_cli.options import Json
from torchcow_cli.output import console, document, escape, table
from torchcow_cli.registry.opening import Folder, VersionText, date, describe, opened, stored


def ls(path: Folder = None, json: Json = False) -> None:
    """List the names, their latest versions and their tags."""
    with opened(path) as registry:
        rows: list[dict[str, Any]] = []
        for name in registry.names():
            versions = registry.versions(name)
            tags = {tag: version.number for tag, version in registry.tags(name).items()}
            rows.append({"name": name, "versions": len(versions), "latest": describe(versions[-1]), "tags": tags})
    if json:
        document({"names": rows})
        return
    cells = [
        [
            row["name"],
            str(row["versions"]),
            row["latest"]["version"],
            row["latest"]["created"],
            ", ".join(f"{tag} @{number}" for tag, number in row["tags"].items()),
        ]
        for row in rows
    ]
    columns = ["name", "versions", "latest", "added", "tags"]
    console().print(table(None, columns, cells, left=columns) if cells else "the registry is empty")


def log(
    of: Annotated[str | None, typer.Argument(metavar="[NAME | NAME:TAG]", help="All names by default.")] = None,
    path: Folder = None,
    json: Json = False,
) -> None:
    """List versions, or the history of a tag, newest first."""
    with opened(path) as registry:
        if of is not None and ":" in of:
            history = registry.history(of)[::-1]
            moves = [
                {
                    "version": one.version,
                    "at": date(one.at),
                    "rolled back": None if one.rolled_back is None else date(one.rolled_back),
                }
                for one in history
            ]
            columns = ["version", "at", "rolled back"]
            told: dict[str, Any] = {"tag": of, "history": moves}
            cells = [[str(move[column] or "") for column in columns] for move in moves]
        else:
            versions = [describe(version) for version in registry.versions(of)[::-1]]
            columns = ["version", "added", "from", "tags", "metadata"]
            told = {"versions": versions}
            cells = [
                [
                    version["version"],
                    version["created"],
                    version["parent"] or "",
                    ", ".join(version["tags"]),
                    _plain(version["metadata"]),
                ]
                for version in versions
            ]
    if json:
        document(told)
    else:
        console().print(table(None, columns, cells, left=columns) if cells else "nothing was added yet")


def show(version: VersionText, path: Folder = None, json: Json = False) -> None:
    """Show what is known about a version, and its tensors."""
    from torchcow.report.table import size

    with opened(path) as registry:
        found = registry.version(version)
        lineage = [str(one) for one in registry.lineage(str(found))]
        content = stored(registry, str(found))
        above = stored(registry, found.parent).tensors if found.parent else {}
    tensors = content.tensors
    known = {tensor.fingerprint for tensor in above.values()}
    sizes = {tensor.fingerprint: tensor.bytes for tensor in tensors.values()}
    told = {
        **describe(found),
        "lineage": lineage,
        "bytes": sum(sizes.values()),
        "bytes that its parent has not": sum(sizes[one] for one in sizes if one not in known),
        "tensors": {name: asdict(tensor) for name, tensor in tensors.items()},
        "values": content.values,
    }
    if json:
        document(told)
        return
    out = console()
    lines = {
        "added": told["created"],
        "tags": ", ".join(told["tags"]) or "none",
        "lineage": " < ".join(lineage),
        "metadata": _plain(told["metadata"]) or "none",
        "tensors": f"{len(tensors)}, {size(told['bytes'])}",
    }
    if found.parent:
        lines["new"] = f"{size(told['bytes that its parent has not'])} that {found.parent} has not"
    out.print(f"[bold]{escape(str(found))}[/]")
    for word, text in lines.items():
        out.print(f"{word:9} {escape(text)}")
    cells = [
        [name, tensor.dtype, str(list(tensor.shape)), size(tensor.bytes), tensor.fingerprint[:12]]
        for name, tensor in tensors.items()
    ]
    out.print(table(None, ["tensor", "dtype", "shape", "size", "fingerprint"], cells, left={"dtype", "shape"}))


def diff(
    first: Annotated[str, typer.Argument(metavar="VERSION", help="'name' (the latest), 'name@3' or 'name:tag'.")],
    second: Annotated[str, typer.Argument(metavar="VERSION", help="What it is compared with.")],
    path: Folder = None,
    json: Json = False,
) -> None:
    """Compare the tensors of two versions, bit by bit.

    Fingerprints are compared first; only tensors that differ are read, for the size of the difference.
    """
    from torchcow.registry.stored_version import compare, compare_parts, part_change, plain_part
    from torchcow.report.table import size

    with opened(path) as registry:
        one, other = stored(registry, first), stored(registry, second)
        tensors, parts = compare(one, other), compare_parts(one, other)
    counts = Counter(tensor.status for tensor in tensors.values())
    if json:
        document(
            {
                "first": str(one.version),
                "second": str(other.version),
                "identical": not (set(counts) - {"equal"} or parts),
                "tensors": {name: asdict(tensor) for name, tensor in tensors.items()},
                "other parts": {
                    name: {side: plain_part(node) for side, node in sides.items()} for name, sides in parts.items()
                },
            }
        )
        return
    cells = [
        [name, tensor.status, size(tensor.bytes), _number(tensor.norm), _number(tensor.relative), tensor.change]
        for name, tensor in tensors.items()
        if tensor.status != "equal"
    ]
    for name, sides in parts.items():
        status = "different" if len(sides) == 2 else "removed" if "first" in sides else "added"
        cells.append([name or "(the whole)", status, "", "", "", part_change(sides)])
    if cells:
        title = f"{one.version} to {other.version}"
        console().print(
            table(title, ["", "status", "size", "norm", "relative", "change"], cells, left={"status", "change"})
        )
    console().print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no tensors")


def _number(norm: float) -> str:
    return "" if math.isnan(norm) else f"{norm:.3g}"


def _plain(metadata: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in metadata.items())
