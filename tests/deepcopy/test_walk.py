# SPDX-License-Identifier: Apache-2.0
"""The native walk under hostile conditions: depth, interruption, mutation in the middle, collections, threads.

Catches: a crash of the process, a leak, half-built objects that user code can see, an error that ``copy.deepcopy``
would not raise.
"""

from __future__ import annotations

import collections
import copy
import copyreg
import enum
import gc
import signal
import sys
import threading
import time
import tracemalloc
import weakref

import pytest
import torch
from torch import nn

import torchcow
from support.oracle import STARTS_PROCESSES, assert_same, attempt, raised_alike, run_script


class Plain:
    pass


def nested(depth, wrap):
    obj = []
    for _ in range(depth):
        obj = wrap(obj)
    return obj


def in_attribute(obj):
    new = Plain()
    new.inner = obj
    return new


def depth_of(obj):
    depth = 0
    while True:
        if isinstance(obj, dict):
            obj = obj["x"]
        elif isinstance(obj, (list, tuple, collections.deque)):
            if not obj:
                return depth
            obj = obj[0]
        else:
            obj = obj.inner
        depth += 1


WRAPS = {
    "list": lambda x: [x],
    "tuple": lambda x: (x,),
    "dict": lambda x: {"x": x},
    "OrderedDict": lambda x: collections.OrderedDict(x=x),
    "instance": in_attribute,
    "deque": lambda x: collections.deque([x]),
}


@pytest.mark.parametrize("name", WRAPS)
def test_what_is_nested_too_deeply_for_deepcopy(name):
    source = nested(20_000, WRAPS[name])
    with pytest.raises(RecursionError):
        copy.deepcopy(source)
    clone = torchcow.clone(source)
    assert depth_of(clone) == depth_of(source) == 20_000


def test_modules_nested_too_deeply_for_deepcopy():
    module = nn.Linear(2, 2)
    for _ in range(300):
        module = nn.Sequential(module)
    with pytest.raises(RecursionError):
        copy.deepcopy(module)
    clone = torchcow.clone(module)
    assert [name for name, _ in clone.named_modules()] == [name for name, _ in module.named_modules()]
    assert_same(list(module.parameters()), list(clone.parameters()), "the innermost layer")


class Endless:
    def __reduce__(self):
        return Endless, (Endless(),)


class EndlessMethod:
    def __deepcopy__(self, memo):
        return copy.deepcopy(EndlessMethod(), memo)


@pytest.mark.parametrize("cls", [Endless, EndlessMethod])
def test_an_endless_object_ends(cls):
    with pytest.raises(RecursionError):
        torchcow.clone([cls()])
    with torchcow.patch(), pytest.raises(RecursionError):
        copy.deepcopy([cls()])


@STARTS_PROCESSES
def test_a_high_limit_does_not_run_off_the_stack():
    """User methods that call deepcopy again, in a thread with a small stack and with no limit that helps."""
    run_script(
        """
import copy, sys, threading
import torch, torchcow

class Link:
    def __init__(self, next): self.next = next
    def __deepcopy__(self, memo): return Link(copy.deepcopy(self.next, memo))

def chain(n):
    link = None
    for _ in range(n): link = Link(link)
    return link

def take_apart(link):  # Python 3.13 runs off the stack when it frees a long chain
    while link is not None: link.next, link = None, link.next

sys.setrecursionlimit(10**6)
def work():
    source, copied = chain(100_000), None
    with torchcow.patch():
        try:
            copied = copy.deepcopy(source)
        except RecursionError:
            results.append("error")
        else:
            results.append("copied")
    take_apart(source)
    take_apart(copied)
    torchcow.clone([[[torch.nn.Linear(3, 3)]]])
results = []
for size in (256 * 1024, 1 << 20, 0):
    threading.stack_size(size)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
work()
assert len(results) == 4, results
""",
        timeout=300,
    )


@STARTS_PROCESSES
@pytest.mark.parametrize("patched", [False, True])
def test_ctrl_c_within_a_second(patched):
    run_script(
        f"""
import copy, os, signal, threading, time
import torch, torchcow
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process of a shell ignores it
objects = []
for i in range(3_000_000):
    objects.append([i])
copier = torchcow.clone
if {patched}:
    torchcow.patch()
    copier = copy.deepcopy
def interrupt():
    time.sleep(0.2)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
sent = []
threading.Thread(target=interrupt).start()
try:
    while True: copier(objects)
except KeyboardInterrupt:
    took = time.monotonic() - sent[0]
assert took < 1, took
""",
        timeout=300,
    )


def test_other_threads_get_a_turn():
    objects = [[i] for i in range(1_000_000)]
    turns, done = [], threading.Event()

    def count():
        while not done.is_set():
            turns.append(time.monotonic())
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    begin = time.monotonic()
    torchcow.clone(objects)
    end = time.monotonic()
    done.set()
    thread.join()
    assert sum(begin < turn < end for turn in turns) > 2


class Acts:
    """Does something in the middle of a copy."""

    def __init__(self, act):
        self.act = act

    def __deepcopy__(self, memo):
        self.act(memo)
        return self


def changed_list(_=None):
    source = [1, [2], 3]
    source.insert(1, Acts(lambda memo: source.clear()))
    return source


def grown_list():
    source = []
    source.extend([Acts(lambda memo: source.append([7]) if len(source) < 9 else None)] * 2)
    return source


def grown_dict():
    source = {}
    source["a"] = Acts(lambda memo: source.update(b=[1]))
    return source


def exchanged_key():
    source = {"b": 1, "c": 2}
    source = {"a": Acts(lambda memo: (source.pop("c"), source.update(d=3))), **source}
    return source


def grown_instance():
    source = Plain()
    source.a = Acts(lambda memo: setattr(source, "b", 1))
    source.c = [1]
    return source


def exchanged_attribute():
    source = Plain()
    source.a = Acts(lambda memo: (delattr(source, "c"), setattr(source, "d", 1)))
    source.b, source.c = [1], [2]
    return source


def cleared_memo():
    shared = [1]
    return [shared, Acts(lambda memo: memo.clear()), shared, {"x": shared}]


def seeded_memo():
    later = [1]
    return [Acts(lambda memo: memo.update({id(later): "instead", id(5): 6})), later, 5]


def spoiled_memo():
    return [[1], Acts(lambda memo: memo.update({id(memo): "no list"})), [2]]


def torch_in_the_memo():
    return [torch.ones(300), Acts(lambda memo: memo.update(torch={})), torch.ones(300)]


def changed_set():
    source = {1, 2}
    holder = Plain()
    holder.members = source
    holder.act = Acts(lambda memo: source.add(3))
    return [holder, source]


def reordered_dict():
    source = collections.OrderedDict(a=[1], b=2, c=[3])
    source.move_to_end("a")
    return source


def reordered_in_the_middle():
    source = collections.OrderedDict(a=1, b=2, c=3)
    source["b"] = Acts(lambda memo: source.move_to_end("a"))
    return source


def shrunk_ordered_dict():
    source = collections.OrderedDict(a=1, b=2, c=3)
    source["b"] = Acts(lambda memo: source.popitem())
    return source


MUTATIONS = {
    f.__name__: f
    for f in (
        *(changed_list, grown_list, grown_dict, exchanged_key, grown_instance, exchanged_attribute),
        *(cleared_memo, seeded_memo, spoiled_memo, torch_in_the_memo, changed_set),
        *(reordered_dict, reordered_in_the_middle, shrunk_ordered_dict),
    )
}


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("memo", [None, {}])
def test_changes_in_the_middle(name, memo):
    def outcome(copier):
        source = MUTATIONS[name]()
        try:
            return "returned", copier(source, None if memo is None else {})
        except Exception as error:
            return "raised", (type(error), str(error))

    want, got = outcome(copy.deepcopy), outcome(torchcow.clone)
    assert got[0] == want[0], (want, got)
    if want[0] == "raised":
        assert got[1] == want[1]
    else:
        assert_same(shape(want[1]), shape(got[1]), name)


def shape(obj):
    """Without the functions of Acts, which differ from graph to graph."""
    if isinstance(obj, Acts):
        return "acts"
    if isinstance(obj, list):
        return [shape(x) for x in obj]
    if isinstance(obj, dict):
        return {key: shape(value) for key, value in obj.items()}
    return shape(vars(obj)) if isinstance(obj, Plain) else obj


CALLS = []


def noted(name):
    return Acts(lambda memo: CALLS.append(name))


def calls_of_both(source, memo):
    """What deepcopy and clone call, each in its order."""
    orders = []
    for copier in (copy.deepcopy, torchcow.clone):
        CALLS.clear()
        copier(source, None if memo is None else {})
        orders.append(list(CALLS))
    return orders


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict, collections.Counter, type("Own", (dict,), {})])
@pytest.mark.parametrize("memo", [None, {}])
def test_keys_and_values_are_copied_in_the_order_of_deepcopy(kind, memo):
    want, got = calls_of_both(kind({noted("key"): noted("value"), noted("second key"): noted("second value")}), memo)
    assert got == want and len(want) == 4


class Looked:
    """Notes which attributes are asked for."""

    def __getattribute__(self, name):
        CALLS.append(name)
        return object.__getattribute__(self, name)


class LookedWithSetstate(Looked):
    def __setstate__(self, state):
        object.__getattribute__(self, "__dict__").update(state)


@pytest.mark.parametrize("cls", [Looked, LookedWithSetstate])
@pytest.mark.parametrize("memo", [None, {}])
def test_the_attributes_that_deepcopy_asks_for_are_asked_for(cls, memo):
    source = cls()
    source.x = [1]
    want, got = calls_of_both(source, memo)
    assert got == want and "__reduce_ex__" in want


class Watches(Plain):
    """Looks at everything that the garbage collector can see, in the middle of a clone."""

    def __setstate__(self, state):
        self.__dict__.update(state)
        for obj in gc.get_objects():
            if type(obj) in (list, tuple, dict, Plain):
                repr(type(obj)), len(getattr(obj, "__dict__", obj))
                if type(obj) is tuple:
                    hash(tuple(map(id, obj)))


def test_nothing_half_built_is_to_be_seen():
    watches = Watches()
    watches.x = 1
    inner = in_attribute((1, [watches], watches))
    source = {"a": (inner, [1, (2, watches)], nn.Linear(3, 3)), "b": watches}
    clone = torchcow.clone(source)
    assert clone["a"][0].inner[2] is clone["b"]


def test_everything_that_was_made_is_tracked():
    source = {"a": [1, (in_attribute([2]), [])], "b": nn.Linear(3, 3), "c": {}, "d": collections.OrderedDict(x=[1])}
    clone, oracle = torchcow.clone(source), copy.deepcopy(source)

    def tracked(obj):
        inner = obj["a"][1][0]
        everything = [obj, obj["a"], obj["a"][1], inner, vars(inner), obj["b"], vars(obj["b"]), obj["d"]]
        return [gc.is_tracked(x) for x in (*everything, obj["b"]._forward_hooks, obj["b"].weight)]

    assert tracked(clone) == tracked(oracle)


def test_cycles_are_collected():
    source = Plain()
    source.self, source.list, source.net = source, [source], nn.Linear(3, 3)
    source.net.owner = source
    clone = torchcow.clone(source)
    gone = weakref.ref(clone), weakref.ref(clone.net)
    assert clone.self is clone
    assert clone.net.owner is clone
    del clone
    gc.collect()
    assert gone[0]() is None
    assert gone[1]() is None


class Fails:
    fail = True

    def __reduce_ex__(self, protocol):
        if self.fail:
            raise ZeroDivisionError("not now")
        return Fails, ()


def everything():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.LSTM(4, 4))
    net.note = [(1, [2]), {"a": in_attribute(3)}, collections.OrderedDict(x=[1]), {5}, collections.deque([[1]])]
    net[0].register_forward_hook(print)
    return net, torch.optim.Adam(net.parameters())


@pytest.mark.parametrize("how", ["returned", "raised", "with a memo", "patched"])
def test_nothing_leaks(how):
    source = [*everything()]
    if how == "raised":
        source.append(Fails())

    def once():
        try:
            if how == "patched":
                with torchcow.patch():
                    copy.deepcopy(source)
            else:
                torchcow.clone(source, {} if how == "with a memo" else None)
        except ZeroDivisionError:
            pass

    for _ in range(20):
        once()
    gc.collect()
    objects, references = len(gc.get_objects()), sys.getrefcount(None)
    counts = [sys.getrefcount(x) for x in gc.get_objects() if type(x) is type]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(300):
        once()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert abs(len(gc.get_objects()) - objects) < 50
    assert abs(sys.getrefcount(None) - references) < 100
    now = [sys.getrefcount(x) for x in gc.get_objects() if type(x) is type]
    assert abs(sum(now) - sum(counts)) < 200
    assert after - before < 50_000, after - before


def test_a_failed_clone_leaves_everything_as_it_was():
    source = [*everything(), Fails()]
    versions = [p._version for p in source[0].parameters()]
    before = torchcow.ledger()
    with pytest.raises(ZeroDivisionError, match="not now"):
        torchcow.clone(source)
    assert [p._version for p in source[0].parameters()] == versions
    after = torchcow.ledger()
    assert after.unique_bytes - before.unique_bytes == sum(
        torchcow.memory(p).unique for p in (*source[0].parameters(), *source[0].buffers()) if torchcow._C.usage(p).block
    )
    assert not any(torchcow.is_shared(p) for p in source[0].parameters())
    Fails.fail = False
    try:
        clone = torchcow.clone(source)
    finally:
        Fails.fail = True
    assert_same(source[0].state_dict(), clone[0].state_dict(), "after a failure")


def test_one_prototype_in_many_threads():
    source = everything()
    oracle = copy.deepcopy(source)
    clones, problems = [], []

    def work(number):
        try:
            for _ in range(20):
                net, optimizer = torchcow.clone(source)
                net[0](torch.ones(2, 8)).sum().backward()
                with torch.no_grad():
                    net[0].weight.fill_(number)
                optimizer.step()
                clones.append((number, net))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert_same(oracle[0].state_dict(), source[0].state_dict(), "the source")
    for number, net in clones:
        assert torch.allclose(net[0].weight, torch.tensor(float(number)), atol=0.01)
        assert torch.equal(net[1].running_var, oracle[0][1].running_var)


def test_signals_that_raise_in_the_middle():
    """A handler that raises at many different moments: the clone is whole or there is none."""
    source = [[i, {"a": (i, [i])}] for i in range(20_000)]

    class EnoughError(Exception):
        pass

    def stop(*_):
        raise EnoughError

    old = signal.signal(signal.SIGALRM, stop)
    interrupted = 0
    try:
        for moment in range(1, 60):
            try:
                signal.setitimer(signal.ITIMER_REAL, moment / 4000)
                torchcow.clone(source)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except EnoughError:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupted
    assert torchcow.clone(source) == source


class Default:
    def __init__(self):
        self.a = [1]


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "__deepcopy__": lambda self, memo: "patched",
        "__reduce_ex__": lambda self, protocol: "patched",
        "__reduce__": lambda self: (list, ()),
        "__getstate__": lambda self: {"a": "state"},
        "__setstate__": lambda self, state: setattr(self, "b", state),
        "__getattr__": lambda self, name: (lambda memo: "getattr") if name == "__deepcopy__" else [][1],
        "__new__": staticmethod(lambda cls: object.__new__(Plain)),
    }.items(),
)
@pytest.mark.parametrize("level", [Default, None])
def test_a_class_that_is_patched_later(name, value, level, monkeypatch):
    """Also through a base class, and while clones have been made before and after."""

    class Derived(Default):
        pass

    source = [Derived(), Derived()]
    torchcow.clone(source)
    with monkeypatch.context() as patched:
        patched.setattr(level or Derived, name, value, raising=False)
        assert_same(copy.deepcopy(source), torchcow.clone(source), f"with {name}")
    assert_same(copy.deepcopy(source), torchcow.clone(source), f"without {name}")


def test_tables_that_are_changed_later(monkeypatch):
    source = [Default(), (1, 2.5), "text", [3]]
    torchcow.clone(source)
    with monkeypatch.context() as patched:
        patched.setitem(copy._deepcopy_dispatch, Default, lambda x, memo: "from the table")
        patched.setitem(copy._deepcopy_dispatch, str, lambda x, memo: x + "!")
        patched.setitem(copy._deepcopy_dispatch, list, lambda x, memo: tuple(x))
        want, got = [[copier(x) for x in source] for copier in (copy.deepcopy, torchcow.clone)]
        assert want == got == ["from the table", (1, 2.5), "text!", (3,)]
    with monkeypatch.context() as patched:
        patched.setitem(copyreg.dispatch_table, Default, lambda x: "name")
        assert torchcow.clone(source)[0] is source[0]
    assert type(torchcow.clone(source)[0]) is Default
    assert torchcow.clone(source)[1:] == source[1:]


def from_the_table(obj, memo):
    return "from the table"


@pytest.mark.parametrize("copier", [copy.deepcopy, torchcow.clone])
def test_a_table_that_changes_in_the_middle(copier, monkeypatch):
    act = Acts(lambda memo: monkeypatch.setitem(copy._deepcopy_dispatch, Default, from_the_table))
    before, _, after = copier([Default(), act, Default()])
    assert type(before) is Default and after == "from the table"


def questions(source):
    """How often a clone asks a class for its slots, which it does for each class that it does not know."""
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        torchcow.clone(source)
    finally:
        sys.setprofile(None)
    return calls.count("_slotnames")


@pytest.mark.parametrize("table", [copy._deepcopy_dispatch, copyreg.dispatch_table], ids=["copy", "copyreg"])
def test_a_class_is_asked_again_only_when_a_table_has_changed(table, monkeypatch):
    class Asked:
        pass

    source = [Asked() for _ in range(10)]
    assert 0 < questions(source) < 10
    assert questions(source) == 0
    with monkeypatch.context() as patched:
        patched.setitem(table, Plain, from_the_table)
        assert questions(source) == 1
        assert questions(source) == 0
    assert questions(source) == 1


@STARTS_PROCESSES
@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no watchers, and needs none")
def test_where_no_dict_watcher_is_left_tables_are_asked_each_time():
    pytest.importorskip("_testcapi")
    run_script(
        """
import _testcapi, copy, torch  # torch needs a watcher itself
ids = []
try:
    while True: ids.append(_testcapi.add_dict_watcher(0))
except RuntimeError:
    pass
assert ids
import torchcow
class Default: pass
source = [Default(), (1, 2.5), "text", [3]]
assert type(torchcow.clone(source)[0]) is Default
copy._deepcopy_dispatch[Default] = lambda x, memo: "from the table"
copy._deepcopy_dispatch[str] = lambda x, memo: x + "!"
assert torchcow.clone(source) == ["from the table", (1, 2.5), "text!", [3]]
del copy._deepcopy_dispatch[Default]
assert type(torchcow.clone(source)[0]) is Default and torchcow.clone(source)[2] == "text!"
"""
    )


def test_methods_of_torch_that_are_patched_later(monkeypatch):
    source = [nn.Linear(3, 3), torch.ones(300), nn.Parameter(torch.ones(300)), torch.ones(3).untyped_storage()]
    torchcow.clone(source)
    for cls, name in (
        (torch.Tensor, "__deepcopy__"),
        (nn.Parameter, "__deepcopy__"),
        (torch.UntypedStorage, "__deepcopy__"),
        (nn.Module, "__deepcopy__"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(cls, name, lambda self, memo: ("patched", type(self).__name__), raising=False)
            for obj in source:
                want, got = attempt(copy.deepcopy, obj), attempt(torchcow.clone, obj)
                if not raised_alike(want, got, cls):
                    assert type(got[1]) is type(want[1])
                    assert not isinstance(want[1], tuple) or got[1] == want[1]
    with monkeypatch.context() as patched:
        patched.setattr(nn.Module, "__setstate__", lambda self, state: self.__dict__.update(state, patched=1))
        assert torchcow.clone(source)[0].patched == 1
    assert not hasattr(torchcow.clone(source)[0], "patched")


class Text(str, enum.Enum):  # noqa: UP042 - as libraries that know Python 3.10 write it
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Loud(str, enum.Enum):  # noqa: UP042
    RED = "red"

    def __getattribute__(self, name):
        if name == "__deepcopy__":
            return lambda memo: "asked"
        return super().__getattribute__(name)


@pytest.mark.parametrize("member", [Text.RED, Level.HIGH])
def test_members_of_enumerations_are_atomic_also_if_they_are_strings_or_numbers(member):
    """Asking one publishes the memo, and what comes after is copied five times as slowly."""
    asked = []
    sys.setprofile(lambda frame, event, _: asked.append(frame.f_code.co_name) if event == "call" else None)
    try:
        clone = torchcow.clone([member, {1, 2}])
    finally:
        sys.setprofile(None)
    assert clone[0] is member and "__deepcopy__" not in asked and "_slotnames" not in asked


def test_an_enumeration_that_answers_for_itself_is_asked():
    assert torchcow.clone([Loud.RED]) == copy.deepcopy([Loud.RED]) == ["asked"]


def test_sets_after_the_memo_was_published_have_the_entries_of_a_deep_copy():
    class Publishes:
        def __deepcopy__(self, memo):
            return self

    def entries(copier):
        memo = {}
        shared = {"a"}
        result = copier([Publishes(), shared, frozenset({(1, ("b",))}), shared], memo)
        assert result[1] is result[3] and result[1] is not shared
        return sorted(type(value).__name__ for value in memo.values())

    assert entries(torchcow.clone) == entries(copy.deepcopy)
