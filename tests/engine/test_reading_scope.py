# SPDX-License-Identifier: Apache-2.0
"""``torchcow.reading``: pointers that only read un-share nothing, operators that write do, and the rest is told."""

from __future__ import annotations

import copy
import gc
import io
import threading

import pytest
import torch
from torch import nn

import torchcow
from torchcow import IsolationError
from torchcow.testing import verify

SIZE = 1000


def family(*, requires_grad=False):
    """A source and two clones that share, and what they hold."""
    source = {"x": torch.arange(SIZE, dtype=torch.float32).requires_grad_(requires_grad)}
    return source, torchcow.clone(source), torchcow.clone(source), copy.deepcopy(source)


def address(tensor):
    return torchcow._C.usage(tensor).block


#: Ways of asking for a pointer.
READS = {
    "data_ptr": lambda t: t.data_ptr(),
    "storage_data_ptr": lambda t: t.untyped_storage().data_ptr(),
    "numpy": lambda t: float(t.detach().numpy().sum()),
    "array_of_the_tensor": lambda t: float(t.numpy().sum()),
    "dlpack": lambda t: float(torch.from_dlpack(t).sum()),
    "torch_save": lambda t: torch.save(t, io.BytesIO()),
}


@pytest.mark.parametrize("name", READS)
def test_reads_through_pointers_unshare_outside_of_the_scope_only(name):
    """Seen to fail without `write_hook::suspend`."""
    source, clone, other, _ = family()
    with torchcow.reading(clone):
        READS[name](clone["x"])
        READS[name](clone["x"])
    assert torchcow.is_shared(clone["x"]) and address(clone["x"]) == address(source["x"])
    READS[name](clone["x"])
    assert not torchcow.is_shared(clone["x"])
    assert torchcow.is_shared(other["x"])
    verify()


def test_the_hook_is_heard_again_after_the_scope():
    """Seen to fail without `write_hook::resume`."""
    source, clone, _, expected = family()
    with torchcow.reading(clone):
        clone["x"].data_ptr()
    clone["x"].numpy()[:] = -1
    assert torch.equal(source["x"], expected["x"])
    verify()


@pytest.mark.parametrize("who", ["source", "clone"])
def test_operators_that_write_materialize_within_the_scope(who):
    source, clone, other, expected = family()
    writer, reader = (source, clone) if who == "source" else (clone, source)
    with torchcow.reading(writer):
        writer["x"].data_ptr()
        writer["x"].add_(1)
        assert not torchcow.is_shared(writer["x"])
        writer["x"].numpy()[0] = 5  # its own memory by now
    assert torch.equal(reader["x"], expected["x"]) and torch.equal(other["x"], expected["x"])
    assert writer["x"][0] == 5 and writer["x"][1] == 2
    verify()


def test_statistics_that_no_schema_marks_are_written_to_memory_of_their_own():
    norm = nn.BatchNorm1d(SIZE)
    clone = torchcow.clone(norm)
    with torchcow.reading(clone, checksum=True):
        clone(torch.rand(4, SIZE))
    assert torch.equal(norm.running_mean, torch.zeros(SIZE)) and clone.running_mean.count_nonzero()


def test_others_are_not_in_the_scope():
    source, clone, other, expected = family()
    with torchcow.reading(clone):
        other["x"].numpy()[:] = -1
        source["x"].numpy()[:] = -2
    assert torch.equal(clone["x"], expected["x"])
    verify()


def told(write, **options):
    """What the scope says after ``write`` to a clone, and whether the source holds what was written."""
    source, clone, _, expected = family()
    with pytest.raises(IsolationError) as error, torchcow.reading(clone, **options):
        write(clone["x"])
    return str(error.value), not torch.equal(source["x"], expected["x"])


@pytest.fixture
def damage():
    """The check after each test must not see damage that was done on purpose."""
    yield told
    gc.collect()


def through_a_pointer(tensor):
    array = tensor.detach().numpy()
    array[3] = -7


def as_compiled_code_does(tensor):
    """It writes through a pointer, and says so to autograd alone."""
    through_a_pointer(tensor)
    torch.autograd.graph.increment_version(tensor)


def to_memory_that_the_tensor_leaves(tensor):
    array = tensor.detach().numpy()
    tensor.add_(1)
    array[0] = -5


def test_a_write_that_moves_the_version_counter_is_told_with_its_name(damage):
    text, reached_the_source = damage(as_compiled_code_does)
    assert "x: its version counter moved from 1 to 2" in text
    assert "All that share it hold what was written. Call torchcow.materialize" in text
    assert reached_the_source


@pytest.mark.parametrize("write", [through_a_pointer, to_memory_that_the_tensor_leaves])
def test_a_write_without_a_trace_is_told_with_checksums(damage, write):
    """Seen to fail when the sums of the beginning are not kept."""
    text, reached_the_source = damage(write, checksum=True)
    assert "x: its bytes have another checksum" in text
    assert reached_the_source


def test_an_error_of_the_block_is_not_lost():
    source, clone, _, expected = family()
    with pytest.raises(ZeroDivisionError), torchcow.reading(clone):
        _ = 1 / 0
    clone["x"].numpy()[:] = -1
    assert torch.equal(source["x"], expected["x"])


#: Views of the memory that outlive the scope.
VIEWS = {
    "array": lambda t: t.detach().numpy(),
    "array_of_the_tensor": lambda t: t.numpy(),
    "dlpack_capsule": lambda t: torch.utils.dlpack.to_dlpack(t),
    "consumer": lambda t: torch.from_dlpack(t),
}


@pytest.mark.parametrize("name", VIEWS)
def test_who_still_looks_at_a_tensor_afterwards_looks_at_memory_that_nobody_shares(name):
    """Seen to fail without `isolate`: the write reaches the source and the other clone."""
    source, clone, other, expected = family()
    with torchcow.reading(clone):
        view = VIEWS[name](clone["x"])
    if name == "dlpack_capsule":
        view = torch.utils.dlpack.from_dlpack(view)
    if name != "consumer":
        assert not torchcow.is_shared(clone["x"])
    view[0] = -1
    assert clone["x"][0] == -1 or name == "consumer"
    assert torch.equal(source["x"], expected["x"]) and torch.equal(other["x"], expected["x"])
    assert address(source["x"]) == address(other["x"]), "one copy for all the others"
    verify()


def test_the_base_of_an_array_is_a_tensor_of_its_own():
    """If that changes in torch, an array over a tensor of the scope would leave no trace but the storage's."""
    tensor = torch.arange(3.0)
    assert tensor.numpy().base is not tensor


def test_an_array_that_is_gone_costs_nothing():
    source, clone, _, _ = family()
    with torchcow.reading(clone):
        kept = clone["x"].numpy().copy()
    assert address(clone["x"]) == address(source["x"]) and kept[5] == 5


def test_an_array_from_before_a_write_in_the_scope_stays_readable():
    """The tensor moves away; what the array sees lives as long as the tensor, and nobody shares it after the scope.

    Seen to fail when former sharers of a scope are not told from others (`FormerSharer::exposure`).
    """
    source, clone, other, expected = family()
    with torchcow.reading(clone):
        array = clone["x"].numpy()
        clone["x"].add_(1)
    array[0] = 77
    assert torch.equal(source["x"], expected["x"]) and torch.equal(other["x"], expected["x"])
    assert clone["x"][0] == 1
    del source, other
    gc.collect()
    assert torchcow.ledger().retired_blocks == 1 and array[1] == 1
    del clone
    gc.collect()
    assert torchcow.ledger().retired_blocks == 1, "the array keeps its tensor, and that the block"
    del array
    assert torchcow.ledger().retired_blocks == 0


def test_a_consumer_from_before_a_write_in_the_scope_stays_readable():
    """DLPack keeps the tensor itself, so no alias shows. Seen to fail when only NumPy's arrays keep the block: the
    consumer reads memory that was freed."""
    source, clone, other, expected = family()
    with torchcow.reading(clone):
        consumer = torch.from_dlpack(clone["x"])
        clone["x"].add_(1)
    del source, other
    gc.collect()
    assert torchcow.ledger().retired_blocks == 1
    del clone
    gc.collect()
    torchcow.clone(torch.ones(SIZE))  # the engine looks at retired blocks
    assert torch.equal(consumer, expected["x"])
    del consumer
    assert torchcow.ledger().retired_blocks == 0


def test_memory_that_was_left_in_the_scope_is_freed_when_no_pointer_is_left():
    """Seen to fail when NumPy's mark is believed although the array is gone."""
    source, clone, other, _ = family()
    with torchcow.reading(clone):
        assert clone["x"].numpy().any()
        clone["x"].add_(1)
    del source, other
    gc.collect()
    assert torchcow.ledger().retired_blocks == 0


def test_an_array_of_a_span_shows_what_its_tensor_holds():
    """Seen to fail when a span moves to a copy, and the array stays behind."""
    flat = torch.arange(4.0 * SIZE)
    source = nn.ParameterList(flat[i * SIZE : (i + 1) * SIZE] for i in range(4))
    clone = torchcow.clone(source)
    with torchcow.reading(clone):
        array = clone[1].detach().numpy()
    array[0] = -1
    assert clone[1][0] == -1 and source[1][0] == SIZE
    with torch.no_grad():
        clone[1].mul_(2)
    assert array[0] == -2 and array[1] == 2 * (SIZE + 1)
    assert torch.equal(flat, torch.arange(4.0 * SIZE))


def test_a_tensor_that_is_reshared_in_the_scope_is_isolated_where_it_is():
    """Seen to fail when only the block of the beginning is isolated: the array writes what others share."""
    first = {"x": torch.arange(float(SIZE))}
    second = copy.deepcopy(first)
    clones = torchcow.clone(first), torchcow.clone(second)
    with torchcow.reading(second):
        assert torchcow.reshare(first, second).tensors == 1
        array = second["x"].numpy()
    array[:] = -1
    for other in (first, *clones):
        assert torch.equal(array_of(other), torch.arange(float(SIZE)))
    assert (array_of(second) == -1).all()


def test_a_tensor_that_another_scope_moves_is_isolated_where_it_is():
    """The inner scope cannot give the clone the memory into which pointers of the outer one may look, and says so; it
    moves all others away from it, the source among them. Seen to fail when the array that the outer scope then hands
    out writes what the other clone shares."""
    source, clone, other, expected = family()
    with pytest.raises(IsolationError, match="x: still referenced"), torchcow.reading(source):
        with pytest.raises(IsolationError, match="x: still referenced"), torchcow.reading(clone):
            left = clone["x"].numpy()
        array = source["x"].numpy()
    array[:] = -1
    assert torch.equal(array_of(other), expected["x"]) and torch.equal(array_of(clone), expected["x"])
    assert (array_of(source) == -1).all() and left[5] == 5


def loaded():
    file = io.BytesIO()
    torch.save({"x": torch.arange(float(SIZE))}, file)
    file.seek(0)
    return torch.load(file)


def seen_by_numpy():
    source, _, _, _ = family()
    assert source["x"].numpy().any()
    return source


@pytest.mark.parametrize("make", [loaded, seen_by_numpy])
def test_tensors_that_may_not_be_resized_keep_sharing(make):
    """That a storage may not be resized is the only trace of NumPy, and torch.load leaves it as well.

    Seen to fail when they are not made resizable for the scope, or not made as they were after it.
    """
    source = make()
    clone = torchcow.clone(source)
    # An array would hold an alias. What torch.load made has no allocator, and so cannot tell one from the other.
    alias = source["x"].detach() if make is seen_by_numpy else None
    with torchcow.reading(source):
        source["x"].data_ptr()
    assert torchcow.is_shared(source["x"])
    with pytest.raises(RuntimeError, match="not resizable"):
        source["x"].untyped_storage().resize_(10 * SIZE)
    del alias
    with torchcow.reading(source):
        array = source["x"].numpy()
    array[0] = -1
    assert clone["x"][0] == 0


def test_equal_tensors_of_one_object_show_two_addresses_unless_they_are_tied():
    """Who saves a model takes equal addresses for ties. Seen to fail when overlapping storages are suspended too."""
    first = nn.Linear(64, 64)
    model = nn.ModuleDict({"first": first, "tied": first, "copied": torchcow.clone(first)})
    expected = copy.deepcopy(model)
    with torchcow.reading(model):
        state = model.state_dict()
        pointers = {name: tensor.data_ptr() for name, tensor in state.items()}
        again = {name: tensor.data_ptr() for name, tensor in state.items()}
    assert pointers == again
    assert pointers["first.weight"] == pointers["tied.weight"] != pointers["copied.weight"]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_parameters_that_are_spans_of_one_buffer_are_covered():
    flat = torch.rand(4 * SIZE)
    parts = nn.ParameterList(flat[i * SIZE : (i + 1) * SIZE] for i in range(4))
    clone = torchcow.clone(parts)
    with torchcow.reading(clone):
        for parameter in clone:
            parameter.data_ptr()
    assert all(torchcow.is_shared(parameter) for parameter in clone)


@pytest.mark.parametrize("inner_first", [True, False])
def test_overlapping_scopes_end_with_the_last(inner_first):
    """Seen to fail when scopes are not counted."""
    source, clone, _, expected = family()
    first, second = torchcow.reading(clone), torchcow.reading(clone)
    first.__enter__()
    second.__enter__()
    (second if inner_first else first).__exit__(None, None, None)
    clone["x"].data_ptr()
    assert torchcow.is_shared(clone["x"])
    (first if inner_first else second).__exit__(None, None, None)
    clone["x"].numpy()[:] = -1
    assert torch.equal(source["x"], expected["x"])


@pytest.mark.parametrize("inner_first", [True, False])
def test_overlapping_scopes_restore_the_mark_of_numpy_once(inner_first):
    """Seen to fail when the first of two scopes restores it: the other takes it for an array, and un-shares."""
    source = seen_by_numpy()
    clone = torchcow.clone(source)
    alias = source["x"].detach()
    first, second = torchcow.reading(source), torchcow.reading(source)
    first.__enter__()
    second.__enter__()
    source["x"].data_ptr()
    (second if inner_first else first).__exit__(None, None, None)
    (first if inner_first else second).__exit__(None, None, None)
    assert torchcow.is_shared(source["x"]) and torchcow.is_shared(clone["x"])
    with pytest.raises(RuntimeError, match="not resizable"):
        source["x"].untyped_storage().resize_(10 * SIZE)
    del alias


@pytest.mark.parametrize("inner_first", [True, False])
def test_an_array_that_outlives_overlapping_scopes_looks_into_memory_of_its_own(inner_first):
    """Seen to fail when the second scope takes away the trace of NumPy that the first has to find."""
    source, clone, _, expected = family()
    first, second = torchcow.reading(clone), torchcow.reading(clone)
    first.__enter__()
    array = clone["x"].numpy()
    second.__enter__()
    (second if inner_first else first).__exit__(None, None, None)
    (first if inner_first else second).__exit__(None, None, None)
    array[:] = -1
    assert torch.equal(source["x"], expected["x"]) and (clone["x"] == -1).all()


def test_an_array_of_a_scope_that_goes_on_is_no_pointer_that_outlives_another():
    """Seen to fail when each scope asks: threads that read one model would un-share it."""
    source, clone, _, _ = family()
    first, second = torchcow.reading(clone), torchcow.reading(clone)
    first.__enter__()
    second.__enter__()
    array = clone["x"].detach().numpy()
    first.__exit__(None, None, None)
    assert torchcow.is_shared(clone["x"])
    del array
    second.__exit__(None, None, None)
    assert address(clone["x"]) == address(source["x"])


def test_a_clone_that_is_made_in_the_scope_is_isolated():
    source, clone, _, expected = family()
    with torchcow.reading(clone):
        clone["x"].data_ptr()
        made = torchcow.clone(clone)
        made["x"].numpy()[:] = -1
    assert torch.equal(clone["x"], expected["x"]) and torch.equal(source["x"], expected["x"])
    verify()


def test_what_dies_in_the_scope_is_forgotten():
    source, clone, _, expected = family()
    with torchcow.reading(clone):
        clone["x"] = torch.zeros(3)
        gc.collect()
    assert torch.equal(source["x"], expected["x"])


def test_a_prototype_can_be_read_and_a_scope_can_decorate():
    prototype = torchcow.Prototype(nn.Linear(64, 64))
    clone = prototype.clone()

    @torchcow.reading(clone)
    def save():
        torch.save(clone.state_dict(), io.BytesIO())

    save()
    save()
    assert torchcow.is_shared(clone.weight)
    with torchcow.reading(prototype):
        pass


def test_inference_tensors_have_no_versions_and_are_read_all_the_same():
    with torch.inference_mode():
        source = torch.arange(float(SIZE))
    clone = torchcow.clone(source)
    shared = torchcow.is_shared(clone)
    with torchcow.reading(clone, checksum=True):
        clone.data_ptr()
    assert torchcow.is_shared(clone) == shared


def test_memory_is_kept_as_long_as_a_scope_goes_on():
    """Seen to fail when the first of two scopes that ends forgets the pointers of the other."""
    source, clone, _, _ = family()
    first, second = torchcow.reading(clone), torchcow.reading(clone)
    first.__enter__()
    second.__enter__()
    del _
    for tensor in (clone["x"], source["x"]):
        tensor.add_(1)
    first.__exit__(None, None, None)
    assert torchcow.ledger().retired_blocks == 1
    second.__exit__(None, None, None)
    assert torchcow.ledger().retired_blocks == 0


@pytest.mark.parametrize("written", [False, True])
def test_memory_that_the_scope_of_a_clone_looks_into_is_given_to_nobody(written):
    """Seen to fail when the clone gets the memory: what is then written into it shows in the array of the source."""
    source, clone, _, expected = family()
    with torchcow.reading(source):
        array = source["x"].numpy()
        if written:
            source["x"].add_(1)
        with (
            pytest.raises(torchcow.IsolationError, match="x: still referenced by a NumPy array"),
            torchcow.reading(clone),
        ):
            left = clone["x"].numpy()
        clone["x"].numpy()[:] = -1
        assert array[5] == 5
        del array, left
    assert torch.equal(array_of(source), array_of(expected) + written)


def test_no_memory_to_isolate_leaves_everything_as_it_was():
    source, clone, _, expected = family()
    with (
        pytest.raises(RuntimeError, match="failed on request"),
        torchcow.testing.fail_allocations(0),
        torchcow.reading(clone),
    ):
        array = clone["x"].detach().numpy()
    assert torch.equal(array_of(source), array_of(expected)) and array[5] == 5
    del array


def array_of(state):
    return state["x"].clone()


def test_threads_that_read_one_model_keep_it_shared():
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(8)))
    clone = torchcow.clone(model)
    failures = []

    def work():
        try:
            for _ in range(50):
                with torchcow.reading(clone):
                    for parameter in clone.parameters():
                        parameter.detach().numpy().sum()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(torchcow.is_shared(parameter) for parameter in clone.parameters())
    clone[0].weight.detach().numpy()[:] = 0
    assert model[0].weight.count_nonzero()
    verify()
