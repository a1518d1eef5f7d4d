# SPDX-License-Identifier: Apache-2.0
"""What the rows of results are called on the page: the keys in the JSON files are short, and stay as they are."""

from __future__ import annotations

import re
from collections.abc import Callable

from report.markdown import digits, duration, size, times

#: Tables of benchmarks that have no page of their own in ``report``, by key.
TABLES = {
    "over_clone": "A prototype against a clone",
    "changes_components_and_shallow_clones": "Changes, components and shallow clones",
    "what_a_proxy_adds_to_a_call": "A call through a proxy",
    "save_and_load_a_delta": "A delta of SmolLM2 135M with one layer changed",
    "many_versions": "Versions of SmolLM2 135M, each with one layer changed",
    "fifty_variants_of_gpt2": "Reports about fifty variants of GPT-2 124M",
    "reshare_after_a_rollback": "`reshare` after a rollback of GPT-2 124M",
}

#: Rows of any table, by key. What is not here is shown as it is.
ROWS = {
    "_foreach_add_": "`torch._foreach_add_`",
    "_foreach_add_ of 10": "`torch._foreach_add_` of 10",
    "_lazy_clone": "`torch._lazy_clone`",
    "_lazy_clone in the memo": "`torch._lazy_clone` in the memo",
    "_lazy_clone, then write": "`torch._lazy_clone`, then write",
    "build, load_state_dict": "build again, `load_state_dict`",
    "convolutions": "convolutional network",
    "copium.deepcopy": "`copium.deepcopy`",
    "copy.deepcopy": "`copy.deepcopy`",
    "deepcopy, then load": "`copy.deepcopy`, then load",
    "deepcopy, then write": "`copy.deepcopy`, then write",
    "detach": "`detach`",
    "first write by _foreach_add_": "first write by `torch._foreach_add_`",
    "functional_call": "`functional_call`",
    "functional_call, copies": "`functional_call`, with copies",
    "gpt2": "GPT-2 124M",
    "meta, assign": "meta device, `assign=True`",
    "meta, assign copies": "meta device, `assign=True`, with copies",
    "pickle": "`pickle`",
    "torch.save, torch.load": "`torch.save`, `torch.load`",
    "torchcow.clone": "`torchcow.clone`",
    "torchcow.clone, then load": "`torchcow.clone`, then load",
    "torchcow.clone, then write": "`torchcow.clone`, then write",
}

#: Rows of one table.
ROWS_OF = {
    "one_tensor": {"torch clone": "`Tensor.clone`", "torch empty_like, zero_": "`empty_like`, `zero_`"},
    "over_clone": {"clone": "`torchcow.clone`", "prototype": "`Prototype.clone`"},
    "changes_components_and_shallow_clones": {
        "plain": "clone",
        "shared": "clone with a shared component",
        "changed": "clone with one change",
        "shallow": "shallow clone",
    },
    "what_a_proxy_adds_to_a_call": {
        "direct": "the model itself",
        "memory": "proxy, registry in memory",
        "folder": "proxy, registry in a folder",
    },
    "save_and_load_a_delta": {"save": "`save_delta`", "load": "`load_delta`"},
    "fifty_variants_of_gpt2": {
        "memory": "`memory` of all",
        "memory_table": "`memory` of all, printed",
        "explain": "`explain` of all",
        "diff_of_one": "`diff` of one variant",
    },
    "reshare_after_a_rollback": {"copy": "copy of all parameters", "reshare": "`reshare`"},
}


def megabytes(value: float) -> str:
    return size(value * 1e6)


#: Figures, by key: what they are called, and how their values are shown.
FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "base_megabytes": ("size of the base", megabytes),
    "changed_megabytes": ("size of all changed tensors", megabytes),
    "database_megabytes": ("size of the database", megabytes),
    "deep_copies_megabytes": ("memory of deep copies of all versions", megabytes),
    "disk_beyond_base_by_changed": ("disk beyond the base, relative to the changed tensors", times),
    "disk_megabytes": ("disk", megabytes),
    "first_add_seconds": ("time to add the first version", duration),
    "first_read_seconds": ("time to read one version", duration),
    "later_add_seconds": ("time to add a later version, median", duration),
    "logical_megabytes": ("memory of deep copies", megabytes),
    "manifest_seconds": ("time to read one manifest", duration),
    "memory_megabytes": ("memory of all versions", megabytes),
    "open_seconds": ("time to open the registry", duration),
    "second_read_seconds": ("time to read another version after that", duration),
    "unique_megabytes": ("memory of the variants", megabytes),
    "versions": ("versions", digits),
}


def row(key: str, of_table: str = "") -> str:
    """The name of a row, with code in backticks."""
    return ROWS_OF.get(of_table, {}).get(key) or ROWS.get(key, key)


def plain(key: str, of_table: str = "") -> str:
    """The same for a chart, which has no backticks."""
    return re.sub("`", "", row(key, of_table))


def table(key: str) -> str:
    return TABLES.get(key, key.replace("_", " "))


def figure(key: str, value: float) -> list[str]:
    name, render = FIGURES.get(key, (key.replace("_", " "), digits))
    return [name, render(value)]
