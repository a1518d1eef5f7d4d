# SPDX-License-Identifier: Apache-2.0
"""Dotted paths: what they lead to, what the errors say, and what may be put where.

Catches: a name with dots that is taken apart, a second place that is passed over in silence, an error without the names
that exist, a value that the check lets through and the object then refuses.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchcow.objects.adapters
from support.oracle import run_script
from torchcow.errors import PathError
from torchcow.objects.adapters import names_missing
from torchcow.objects.adapters.attributes import Attributes
from torchcow.objects.paths import check, locate, look_up, names_at, walk
from torchcow_cli import checks

Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Config:
    rate: float = 0.1
    sizes: tuple = (1, 2)


@dataclasses.dataclass(frozen=True)
class Frozen:
    rate: float = 0.1


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a = {"inner": 5}


class WithProperties:
    default = 3

    def __init__(self):
        self._p = 1

    @property
    def p(self):
        return self._p

    @p.setter
    def p(self, value):
        self._p = value

    @property
    def fixed(self):
        return 7


def everything():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1))
    optimizer = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters()}])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
    return {
        "model": model, "optimizer": optimizer, "scheduler": scheduler, "config": Config(), "frozen": Frozen(),
        "slots": Slotted(), "properties": WithProperties(), "pair": Pair([1], 2), "list": [1, {"x": 2}], 7: "seven",
        "a.b": {"c.d": [10]}, "deque": collections.deque([1, 2]), "partial": functools.partial(max, 1, key=abs),
        "method": Slotted().a.get, "mapping": collections.ChainMap({"k": 1}),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.2.p", 0.1), ("optimizer.lr", 0.1), ("optimizer.param_groups.1.lr", 0.001), ("scheduler.gamma", 0.5),
        ("config.rate", 0.1), ("config.sizes.1", 2), ("slots.a.inner", 5), ("properties.p", 1), ("pair.first.0", 1),
        ("list.1.x", 2), ("7", "seven"), ("a.b.c.d.0", 10), ("deque.1", 2), ("partial.args.0", 1),
        ("mapping.k", 1), ("model.1.training", True), ("properties.default", 3), ("model.0.weight.requires_grad", True),
    ],
)  # fmt: skip
def test_a_path_leads_to_a_part(path, value):
    assert look_up(everything(), path) == value


def test_a_parameter_is_found_and_not_copied():
    obj = everything()
    assert look_up(obj, "model.0.weight") is obj["model"][0].weight
    assert look_up(obj, "scheduler.optimizer") is obj["optimizer"]
    assert look_up(obj, "model.1.running_mean") is obj["model"][1].running_mean


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("model.2.q", "there is no 'q' in 'model.2' (Dropout), so 'model.2.q' leads nowhere; it has: training, p"),
        ("modle.2.p", "there is no 'modle' in this dict, so 'modle.2.p' leads nowhere; it has: model, optimizer"),
        ("optimizer.lrr", "there is no 'lrr' in 'optimizer' (AdamW), so 'optimizer.lrr' leads nowhere; it has: lr, "),
        ("a.b.e", "there is no 'e' in 'a.b' (dict), so 'a.b.e' leads nowhere; it has: c.d"),
        ("list.5", "there is no '5' in 'list' (list), so 'list.5' leads nowhere; it has: 0, 1"),
        ("config.rate.x", "there is no 'x' in 'config.rate' (float), so 'config.rate.x' leads nowhere; it has no "),
        ("", "there is no '' in this dict; it has: model, "),
        ("properties.fixed", "there is no 'fixed' in 'properties' (WithProperties)"),
    ],
)  # fmt: skip
def test_a_wrong_path_says_what_exists(path, words):
    with pytest.raises(PathError) as caught:
        locate(everything(), path)
    assert str(caught.value).startswith(words)
    assert isinstance(caught.value, LookupError)


def test_long_lists_of_names_are_shortened_and_close_ones_come_first():
    with pytest.raises(PathError, match=r"it has: layer_17, .*, and 38 more$"):
        locate({f"layer_{i}": i for i in range(50)}, "layer_17x")


def test_names_with_dots_that_could_mean_two_places_are_refused():
    both = {"a": {"b": 1}, "a.b": 2}
    with pytest.raises(
        PathError, match=r"'a.b' leads to several places in this dict: 'a.b' or 'a' -> 'b'|'a' -> 'b' or"
    ):
        locate(both, "a.b")
    assert look_up({"a": {"c": 1}, "a.b": 2}, "a.b") == 2
    assert look_up({1: "int", "1": "str"}, "'1'") == "str"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.0.bias", torch.ones(4), "'bias' is a parameter and takes a torch.nn.Parameter or None, got a Tensor"),
        ("model.0", 3, "'0' is a child module and takes a torch.nn.Module or None, got an int"),
        ("model.1.running_mean", "x", "'running_mean' is a buffer and takes a torch.Tensor or None, got a str"),
        ("frozen.rate", 1, "Frozen is a frozen dataclass; replace it as a whole"),
        ("config.sizes.1", 1, "a tuple cannot be changed; replace it as a whole"),
        ("pair.second", 1, "a Pair cannot be changed; replace it as a whole"),
        ("partial.args", 1, "the args of a partial cannot be changed; replace it as a whole"),
        ("model.0.weight.requires_grad", 1, "requires_grad takes True or False, got an int"),
        ("model.1.num_batches_tracked.requires_grad", True, "a tensor of torch.int64 cannot require gradients"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(path, value, words):
    with pytest.raises(PathError) as caught:
        check(everything(), path, value)
    assert str(caught.value) == f"{path!r} cannot be set: {words}"


def test_a_slot_and_a_property_without_a_setter():
    slotted = Slotted()
    check(slotted, "a", 3).replace(3)
    assert slotted.a == 3

    class Reading:
        def __init__(self):
            self.__dict__["p"] = 1

        p = property(lambda self: 1)

    with pytest.raises(PathError, match="'p' is a property of Reading without a setter"):
        check(Reading(), "p", 3)


VALUES = [
    3, "x", None, torch.ones(2), nn.Parameter(torch.ones(2)), nn.Linear(2, 2), nn.Buffer(torch.ones(2)), [1], (1,),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_the_check_says_what_a_module_would_say(value):
    """The rules are those of Module.__setattr__: allowed is what it allows, refused what it refuses."""
    for name in ("weight", "running_mean", "child", "plain", "forward"):
        module = nn.BatchNorm1d(2)
        module.child = nn.ReLU()
        module.plain = 5
        try:
            setattr(module, name, value)
            allowed = True
        except (TypeError, KeyError):
            allowed = False
        fresh = nn.BatchNorm1d(2)
        fresh.child, fresh.plain = nn.ReLU(), 5
        if name == "forward":
            fresh.__dict__["forward"] = 1  # so that it is a name, although it hides a method of the class
            if isinstance(value, nn.Parameter):
                continue
        try:
            check(fresh, name, value).replace(value)
            assert allowed, name
        except PathError:
            assert not allowed, name


def test_an_option_of_an_optimizer_is_that_of_all_groups_and_the_default():
    optimizer = everything()["optimizer"]
    check(optimizer, "lr", 0.5).replace(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert optimizer.defaults["lr"] == 0.5
    check(optimizer, "param_groups.0.lr", 0.7).replace(0.7)
    assert [group["lr"] for group in optimizer.param_groups] == [0.7, 0.5]


def test_the_state_of_an_optimizer_is_named_by_the_index_of_the_parameter():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert look_up(optimizer, "state.2.exp_avg") is optimizer.state[model[1].weight]["exp_avg"]
    assert look_up(optimizer, "state") is optimizer.state
    assert [name for name in names_at(optimizer) if name.startswith("state")] == ["state", "state.2", "state.3"]
    check(optimizer, "state.2", {"step": 1}).replace({"step": 1})
    assert optimizer.state[model[1].weight] == {"step": 1}
    optimizer.state["calls"] = 7
    assert look_up(optimizer, "state.calls") == 7
    assert look_up(optimizer, "state.2.step") == 1


def test_named_tuples_and_mappings_have_names_beside_those_of_reports():
    assert look_up(everything(), "pair.0.0") == look_up(everything(), "pair.first.0") == 1
    assert look_up(everything(), "mapping.maps.0.k") == look_up(everything(), "mapping.k") == 1
    mapping = collections.ChainMap({"k": 1})
    check(mapping, "k", 2).replace(2)
    assert mapping.maps == [{"k": 2}]


names = st.text("ab.", max_size=3)
trees = st.recursive(
    st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)


@given(trees)
@settings(max_examples=300, deadline=None)
def test_each_path_of_a_walk_leads_to_the_object_or_to_several(tree):
    for path, found in walk(tree):
        if found is not tree:
            try:
                assert look_up(tree, path) is found
            except PathError as error:
                assert "several places" in str(error)


def test_names_at_a_place():
    assert names_at(everything(), "config") == ["rate", "sizes"]
    assert names_at(Slotted()) == ["a"]
    with pytest.raises(TypeError, match=r"expected a dotted path such as 'encoder.dropout.p', got 3"):
        locate({}, 3)


def test_a_registered_adapter_goes_first(monkeypatch):
    monkeypatch.setattr(torchcow.objects.adapters, "_registered", [])

    class Vault:
        def __init__(self):
            self.content = [1]

        def __reduce_ex__(self, protocol):
            raise TypeError("closed")

    class Vaults(Attributes):
        reducers = ((Vault, lambda obj: (Vault, (), dict(vars(obj)))),)

        def accepts(self, obj):
            return isinstance(obj, Vault)

        def parts(self, obj):
            return {"first": obj.content[0]}

        def replace(self, obj, name, value):
            obj.content[0] = value

    with pytest.raises(torchcow.CloneError, match=r"'a' .*Vault.: TypeError: closed"):
        torchcow.Prototype({"a": Vault()})
    torchcow.objects.adapters.register(Vaults())
    prototype = torchcow.Prototype({"a": Vault()})
    assert prototype.clone(**{"a.first": 5})["a"].content == [5]
    assert prototype.clone()["a"].content == [1]
    with pytest.raises(PathError, match=r"there is no 'content' in 'a' \(Vault\), .*; it has: first"):
        prototype.clone(**{"a.content": []})


def test_no_framework_is_imported_that_is_not_there_already():
    out = run_script("""
import sys, torch, torchcow, types
model = torch.nn.Linear(4, 4)
torchcow.Prototype(model).clone(bias=None)
print([name for name in ("keras", "sklearn", "rich", "torchcow.objects.adapters.keras") if name in sys.modules])
sys.modules["keras"] = types.ModuleType("keras")  # a broken one
torchcow.Prototype(model).clone(bias=None)
print(torchcow.objects.adapters.reducers())
""")
    assert out.split() == ["[]", "()"]


def test_a_framework_whose_adapter_does_not_load_is_reported_once():
    """Otherwise a Keras that moves one of its private names would be copied by way of its file, without a word."""
    out = run_script("""
import sys, torch, torchcow, types, warnings
keras = sys.modules["keras"] = types.ModuleType("keras")
keras.__version__ = "99.0"
sys.modules["keras.src"] = types.ModuleType("keras.src")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        torchcow.Prototype(torch.nn.Linear(4, 4)).clone(bias=None)
(warning,) = [one for one in caught if "torchcow" in str(one.message)]
print(warning.category.__name__, warning.message)
""")
    (warning,) = out.splitlines()
    assert warning.startswith("RuntimeWarning torchcow has no adapter for keras 99.0: No module named 'keras.src.ops'")
    assert "may lose a part of their state" in warning
    assert "Install a version of keras that torchcow supports" in warning


def test_the_doctor_finds_private_names_that_a_framework_has_moved(tmp_path, monkeypatch):
    assert names_missing("keras") == names_missing("sklearn") == []
    package = tmp_path / "keras"
    (package / "src" / "ops").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the doctor must not import it')")
    (package / "src" / "ops" / "function.py").write_text("class Function: ...")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    missing = names_missing("keras")
    assert "keras.src.saving.keras_saveable.KerasSaveable" in missing
    assert "keras.src.ops.function.Function" not in missing
    (finding,) = [one for one in checks.libraries() if one.topic == "keras"]
    assert finding.state == "degraded" and missing[0] in finding.why and finding.remedy.endswith("torchcow supports")
