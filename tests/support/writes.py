# SPDX-License-Identifier: Apache-2.0
"""The table of writes for test_isolation_writes: what is made, how it is written. Data, and little else."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import functools
import io
import pickle
import typing

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from support.oracle import SIDE, regrown, saved_and_loaded

ROW = torch.arange(SIDE)


@dataclasses.dataclass(frozen=True)
class Write:
    name: str
    make: typing.Callable
    write: typing.Callable
    changes: bool = True


# --------------------------------------------------------------------------------------------------- what is written


def matrix():
    return torch.rand(SIDE, SIDE) + 0.25


def complex_matrix():
    return torch.randn(SIDE, SIDE, dtype=torch.complex64)


def integers():
    return torch.randint(0, 100, (SIDE, SIDE))


def booleans():
    return torch.rand(SIDE, SIDE) > 0.5


def parameter():
    return nn.Parameter(matrix())


def pair():
    return [matrix(), matrix()]


def linear():
    return nn.Linear(SIDE, SIDE)


def mlp():
    return nn.Sequential(nn.Linear(SIDE, SIDE), nn.BatchNorm1d(SIDE), nn.ReLU(), nn.Linear(SIDE, SIDE))


def conv():
    return nn.Conv2d(16, 16, 5)


def sparse():
    return torch.sparse_coo_tensor(ROW.repeat(2, 1), torch.rand(SIDE, 64), (SIDE, SIDE, 64))


def _wider():
    return torch.sparse_coo_tensor(ROW.repeat(2, 1), torch.rand(SIDE, 64), (SIDE + 1, SIDE + 1, 64))


def csr():
    return torch.rand(SIDE, SIDE).to_sparse_csr()


def quantized():
    return torch.quantize_per_tensor(torch.randn(SIDE, SIDE), 0.1, 10, torch.quint8)


def quantized_per_channel():
    return torch.quantize_per_channel(
        torch.randn(SIDE, SIDE), torch.full((SIDE,), 0.1), torch.zeros(SIDE), 0, torch.qint8
    )


def of_dtype(dtype):
    def make():
        if dtype == torch.bool:
            return booleans()
        if dtype.is_floating_point or dtype.is_complex:
            return (torch.rand(SIDE, SIDE) + 1).to(dtype)
        return torch.randint(1, 100, (SIDE, SIDE)).to(dtype)

    return make


NARROW = [
    getattr(torch, n)
    for n in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, n)
]
DTYPES = [
    *(torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64, *NARROW),
]

# --------------------------------------------------------------------------------------------------------- the views

VIEWS = {
    "itself": lambda t: t,
    "view": lambda t: t.view(-1),
    "reshape": lambda t: t.reshape(SIDE // 2, -1),
    "slice": lambda t: t[3:9],
    "strided slice": lambda t: t[::2, 1::3],
    "last row": lambda t: t[-1],
    "one element": lambda t: t[5, 7:8],
    "narrow": lambda t: t.narrow(1, 2, 5),
    "select": lambda t: t.select(0, 4),
    "transpose": lambda t: t.t(),
    "mT": lambda t: t.mT,
    "permute": lambda t: t.permute(1, 0),
    "swapaxes": lambda t: t.swapaxes(0, 1),
    "movedim": lambda t: t.movedim(0, 1),
    "chunk": lambda t: t.chunk(3)[1],
    "split": lambda t: t.split(7)[2],
    "tensor_split": lambda t: t.tensor_split(5)[4],
    "hsplit": lambda t: t.hsplit(2)[1],
    "vsplit": lambda t: t.vsplit(2)[1],
    "unbind": lambda t: t.unbind(0)[6],
    "diagonal": lambda t: t.diagonal(),
    "unfold": lambda t: t.unfold(0, 4, 4),
    "unflatten": lambda t: t.unflatten(0, (8, -1)),
    "flatten": lambda t: t.flatten(),
    "unsqueeze": lambda t: t.unsqueeze(0),
    "squeeze": lambda t: t.unsqueeze(0).squeeze(0),
    "as_strided": lambda t: t.as_strided((10, 3), (5, 1), 17),
    "expand_as": lambda t: t.expand_as(torch.empty(SIDE, SIDE)),
    "view_as": lambda t: t.view_as(t),
    "alias": lambda t: torch.ops.aten.alias(t),
    "detach": lambda t: t.detach(),
    "data": lambda t: t.data,
    "view of a view": lambda t: t[2:].t()[3:].diagonal(),
    "view of another dtype": lambda t: t.view(torch.int32),
    "view as bytes": lambda t: t.view(torch.uint8),
    "view as wider": lambda t: t.view(torch.int64),
    "split in two": lambda t: torch.split_with_sizes(t, [10, SIDE - 10])[1],
    "set_ on the storage": lambda t: torch.empty(0).set_(t.untyped_storage()),
    "set_ with shape": lambda t: torch.empty(0).set_(t.untyped_storage(), 11, (5, 5), (9, 1)),
    "frombuffer of its bytes": lambda t: torch.tensor([], dtype=torch.uint8).set_(t.untyped_storage()),
    "data setter": lambda t: _with_data(t),
    "Parameter": lambda t: nn.Parameter(t, requires_grad=False),
    "Buffer": lambda t: nn.Buffer(t),
    "asarray": lambda t: torch.asarray(t),
    "as_tensor": lambda t: torch.as_tensor(t),
    "subclass": lambda t: t.as_subclass(Sub),
    "contiguous": lambda t: t.contiguous(),
    "to the same": lambda t: t.to(torch.float32),
    "real": lambda t: t.real,
    "imag": lambda t: t.imag,
    "view_as_real": lambda t: torch.view_as_real(t),
    "conj": lambda t: t.conj(),
    "neg view": lambda t: t.conj().imag,
    "resolved twice": lambda t: t.conj().conj(),
    "view_as_complex": lambda t: torch.view_as_complex(torch.view_as_real(t)),
}
COMPLEX_VIEWS = {"real", "imag", "view_as_real", "conj", "neg view", "resolved twice", "view_as_complex"}


class Sub(torch.Tensor):
    pass


def _with_data(tensor):
    other = torch.empty(0)
    other.data = tensor
    return other


# ----------------------------------------------------------------------------------------------- methods ending in _


def like(t):
    return torch.linspace(0.1, 2, t.numel()).reshape(t.shape)


def halves(t):
    return torch.full(t.shape, 0.5)


def none(t):
    return ()


def scalar(t):
    return (2,)


def other(t):
    return (like(t),)


INDEX = torch.tensor([3, 1, 40])

UNARY = [
    "abs",
    "absolute",
    "acos",
    "acosh",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctanh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "ceil",
    "cos",
    "cosh",
    "deg2rad",
    "digamma",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "exp2",
    "expm1",
    "fix",
    "floor",
    "frac",
    "i0",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "nan_to_num",
    "neg",
    "negative",
    "rad2deg",
    "reciprocal",
    "round",
    "rsqrt",
    "sgn",
    "sigmoid",
    "sign",
    "sin",
    "sinc",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "trunc",
    "conj_physical",
    "relu",
    "bernoulli",
    "cauchy",
    "exponential",
    "normal",
    "uniform",
    "log_normal",
    "random",
    "zero",
    "tril",
    "triu",
    "t",
    "logit",
    "requires_grad",
    "detach",
    "share_memory",
    "squeeze",
    "logical_not",
]
BINARY = [
    "add",
    "arctan2",
    "atan2",
    "copysign",
    "div",
    "divide",
    "eq",
    "float_power",
    "floor_divide",
    "fmod",
    "ge",
    "greater",
    "greater_equal",
    "gt",
    "heaviside",
    "hypot",
    "igamma",
    "igammac",
    "ldexp",
    "le",
    "less",
    "less_equal",
    "lt",
    "mul",
    "multiply",
    "ne",
    "nextafter",
    "not_equal",
    "pow",
    "remainder",
    "sub",
    "subtract",
    "true_divide",
    "xlogy",
    "copy",
    "logical_and",
    "logical_or",
    "logical_xor",
    "clamp_max",
    "clamp_min",
]
BITWISE = ["bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift", "gcd", "lcm"]

METHODS = {
    **{name + "_": none for name in UNARY},
    **{name + "_": other for name in BINARY},
    **{name + "_": (lambda t: (torch.full(t.shape, 3),)) for name in BITWISE},
    "bitwise_not_": none,
    "copysign_": lambda t: (-like(t),),
    "addbmm_": lambda t: (torch.ones(2, SIDE, 3), torch.ones(2, 3, SIDE)),
    "addcdiv_": lambda t: (like(t), like(t)),
    "addcmul_": lambda t: (like(t), like(t)),
    "addmm_": lambda t: (torch.ones(SIDE, 3), torch.ones(3, SIDE)),
    "addmv_": lambda t: (torch.ones(t.numel(), 3), torch.ones(3)),
    "addr_": lambda t: (torch.ones(SIDE), torch.ones(SIDE)),
    "apply_": lambda t: (lambda x: x + 1,),
    "as_strided_": lambda t: ((SIDE,), (SIDE + 1,)),
    "baddbmm_": lambda t: (torch.ones(8, 8, 3), torch.ones(8, 3, 64)),
    "clamp_": lambda t: (0.5, 0.75),
    "clip_": lambda t: (0.5, 0.75),
    "cumprod_": lambda t: (0,),
    "cumsum_": lambda t: (1,),
    "fill_": scalar,
    "fill_diagonal_": scalar,
    "geometric_": lambda t: (0.3,),
    "index_add_": lambda t: (0, INDEX, torch.ones(3, SIDE)),
    "index_copy_": lambda t: (0, INDEX, torch.ones(3, SIDE)),
    "index_fill_": lambda t: (0, INDEX, -1.0),
    "index_put_": lambda t: ((INDEX, INDEX), torch.tensor(-1.0)),
    "index_reduce_": lambda t: (0, INDEX, torch.full((3, SIDE), 3.0), "prod"),
    "lerp_": lambda t: (like(t), 0.3),
    "map_": lambda t: (like(t), lambda a, b: a + b),
    "map2_": lambda t: (like(t), like(t), lambda a, b, c: a + b + c),
    "masked_fill_": lambda t: (like(t) > 1, -1.0),
    "masked_scatter_": lambda t: (like(t) > 1, like(t)),
    "mvlgamma_": lambda t: (1,),
    "polygamma_": lambda t: (1,),
    "put_": lambda t: (INDEX, torch.ones(3)),
    "renorm_": lambda t: (2, 0, 0.1),
    "resize_": lambda t: (SIDE, SIDE // 2),
    "resize_as_": lambda t: (torch.empty(SIDE // 2, SIDE),),
    "resize_as_sparse_": lambda t: (_wider(),),
    "scatter_": lambda t: (0, INDEX[None], torch.ones(1, 3)),
    "scatter_add_": lambda t: (0, INDEX[None], torch.ones(1, 3)),
    "scatter_reduce_": lambda t: (0, INDEX[None], torch.ones(1, 3), "amax"),
    "set_": lambda t: (torch.ones(5, 5),),
    "sparse_resize_": lambda t: ((SIDE + 1, SIDE + 1, 64), 2, 1),
    "sparse_resize_and_clear_": lambda t: ((SIDE, SIDE, 64), 2, 1),
    "swapaxes_": lambda t: (0, 1),
    "swapdims_": lambda t: (0, 1),
    "transpose_": lambda t: (0, 1),
    "unsqueeze_": lambda t: (0,),
}
CHANGES_NOTHING = {
    "detach_",
    "share_memory_",
    "relu_",
    "abs_",
    "absolute_",
    "conj_physical_",
    "nan_to_num_",
    "squeeze_",
}
LEFT_OUT = {"rename_"}  # named tensors, up to torch 2.12: metadata only
MAKES = {
    **{name + "_": integers for name in [*BITWISE, "bitwise_not"]},
    "addmv_": lambda: torch.rand(SIDE * SIDE),
    "baddbmm_": lambda: torch.rand(8, 8, 64),
    "resize_as_sparse_": sparse,
    "float_power_": lambda: matrix().double(),
    "sparse_resize_": sparse,
    "sparse_resize_and_clear_": sparse,
    "bernoulli_": matrix,
    "acosh_": lambda: matrix() + 1,
    "arccosh_": lambda: matrix() + 1,
}

TABLE: list[Write] = []


def way(make, name=None, changes=True):
    """Register a write."""

    def register(function):
        TABLE.append(Write(name or function.__name__.strip("_").replace("_", " "), make, function, changes))
        return function

    return register


def ways(make, table, changes=True):
    for name, function in table.items():
        TABLE.append(Write(name, make, function, changes))


def put(*index, value=7.0):
    return lambda t: t.__setitem__(index if len(index) != 1 else index[0], value)


# ---------------------------------------------------------------------------------------------- indexing, operators

MASK = (torch.arange(SIDE * SIDE) % 3 == 0).view(SIDE, SIDE)
ways(
    matrix,
    {
        "t[i]=": put(3),
        "t[i, j]=": put(3, 4),
        "t[-1, -1]=": put(-1, -1),
        "t[a:b]=": put(slice(2, 9)),
        "t[::k, a:]=": put(slice(None, None, 5), slice(3, None)),
        "t[...]=": put(...),
        "t[:]=": put(slice(None)),
        "t[:] = tensor": put(slice(None), value=torch.ones(SIDE, SIDE)),
        "t[..., j]=": put(..., 2),
        "t[None, i]=": put(None, 3),
        "t[True]=": put(True),
        "t[mask]=": put(MASK),
        "t[mask]=tensor": put(MASK, value=torch.arange(int(MASK.sum())) + 0.5),
        "t[row mask]=": put(MASK[0]),
        "t[list]=": put([1, 2, 5]),
        "t[range]=": lambda t: t.__setitem__(range(4), 1.0),
        "t[index]=": put(INDEX),
        "t[index, index]=": put(INDEX, INDEX),
        "t[index, :k]=": put(INDEX, slice(0, 4)),
        "t[0-dim index]=": put(torch.tensor(3)),
        "t[numpy index]=": lambda t: t.__setitem__(np.array([1, 2]), 3.0),
        "t[i][j]=": lambda t: t[3].__setitem__(4, 9.0),
        "t[a:b].t()[c]=": lambda t: t[2:9].t().__setitem__(4, 9.0),
        "t[i] = itself shifted": lambda t: t.__setitem__(slice(1, None), t[:-1].clone()),
        "t += 1": lambda t: t.__iadd__(1),
        "t -= t": lambda t: t.__isub__(t),
        "t *= row": lambda t: t.__imul__(t[0].clone()),
        "t /= 3": lambda t: t.__itruediv__(3),
        "t //= 0.1": lambda t: t.__ifloordiv__(0.1),
        "t %= 0.2": lambda t: t.__imod__(0.2),
        "t **= 2": lambda t: t.__ipow__(2),
        "t @= is no write": lambda t: t @ t,
        "index_put accumulate": lambda t: t.index_put_((INDEX.repeat(3),), torch.tensor(1.0), accumulate=True),
        "put_ accumulate": lambda t: t.put_(INDEX.repeat(3), torch.ones(9), accumulate=True),
        "_index_put_impl_": lambda t: torch._index_put_impl_(t, (INDEX,), torch.tensor(2.0)),
        "scatter_ value": lambda t: t.scatter_(1, INDEX[:, None], 5.0),
        "scatter_ reduce": lambda t: t.scatter_(0, INDEX[None], torch.full((1, 3), 3.0), reduce="multiply"),
        "masked_fill_ tensor": lambda t: t.masked_fill_(MASK, torch.tensor(9.0)),
        "index_add_ alpha": lambda t: t.index_add_(1, INDEX, torch.ones(SIDE, 3), alpha=-2),
        "uniform_ generator": lambda t: t.uniform_(generator=torch.Generator().manual_seed(5)),
        "normal_ generator": lambda t: t[2:5].normal_(generator=torch.Generator().manual_seed(5)),
        "random_ range": lambda t: t.random_(2, 5),
        "bernoulli_ tensor": lambda t: t.bernoulli_(torch.full((SIDE, SIDE), 0.5)),
        "torch.dropout_": lambda t: torch.dropout_(t, 0.5, True),
        "F.relu_ of negatives": lambda t: nn.functional.relu(t.sub_(1), inplace=True),
        "F.elu inplace": lambda t: nn.functional.elu(t.neg_(), inplace=True),
        "F.hardtanh_": lambda t: nn.functional.hardtanh_(t, 0.5, 0.6),
        "F.leaky_relu_": lambda t: nn.functional.leaky_relu_(t.neg_()),
        "F.threshold_": lambda t: nn.functional.threshold_(t, 0.7, 0.0),
        "F.rrelu_": lambda t: nn.functional.rrelu_(t.neg_(), training=True),
        "F.hardswish inplace": lambda t: nn.functional.hardswish(t, inplace=True),
        "F.silu inplace": lambda t: nn.functional.silu(t, inplace=True),
        "F.mish inplace": lambda t: nn.functional.mish(t, inplace=True),
        "F.normalize out": lambda t: nn.functional.normalize(t, out=t),
        "torch.relu_": lambda t: torch.relu_(t.sub_(1)),
        "torch.fill_": lambda t: torch.fill_(t, 2.0),
        "torch.zero_": lambda t: torch.zero_(t),
        "torch.add out itself": lambda t: torch.add(t, 1, out=t),
        "torch.add out a view": lambda t: torch.add(t[:3], 1, out=t[3:6]),
        "torch.cat out": lambda t: torch.cat([torch.ones(3, SIDE), torch.ones(SIDE - 3, SIDE)], out=t),
        "torch.stack out": lambda t: torch.stack([torch.arange(float(SIDE))] * SIDE, out=t),
        "torch.mm out": lambda t: torch.mm(torch.ones(SIDE, 3), torch.ones(3, SIDE), out=t),
        "torch.sum out a row": lambda t: torch.sum(t, 0, out=t[0]),
        "torch.topk out": lambda t: torch.topk(t.clone(), SIDE, out=(t, torch.empty(0, dtype=torch.long))),
        "torch.arange out": lambda t: torch.arange(SIDE * SIDE, out=t),
        "torch.eye out": lambda t: torch.eye(SIDE, out=t),
        "torch.randn out": lambda t: torch.randn(SIDE, SIDE, out=t),
        "torch.full out": lambda t: torch.full((SIDE, SIDE), 5.0, out=t),
        "torch.zeros out smaller": lambda t: torch.zeros(3, 3, out=t),
        "torch.ones out larger": lambda t: torch.ones(SIDE, SIDE * 2, out=t),
        "torch.where out": lambda t: torch.where(MASK, t, torch.tensor(0.0), out=t),
        "torch.clamp out": lambda t: torch.clamp(t, 0.4, 0.6, out=t),
        "torch.index_select out": lambda t: torch.index_select(t.clone(), 0, ROW.flip(0), out=t),
        "torch.gather out": lambda t: torch.gather(t.clone(), 0, torch.zeros(SIDE, SIDE, dtype=torch.long), out=t),
        "torch.linalg.qr out": lambda t: torch.linalg.qr(t.clone(), out=(t, torch.empty(0))),
        "copy_ broadcast": lambda t: t.copy_(torch.arange(float(SIDE))),
        "copy_ from another dtype": lambda t: t.copy_(torch.arange(SIDE * SIDE).view(SIDE, SIDE)),
        "copy_ from itself": lambda t: t.copy_(t).add_(1),
        "copy_ non_blocking": lambda t: t.copy_(torch.ones(SIDE, SIDE), non_blocking=True),
        "fill_ with an own element": lambda t: t.fill_(t[0, 0]),
        "in inference mode": lambda t: _inference(t),
        "under no_grad": lambda t: torch.no_grad()(lambda: t.add_(1))(),
        "under deterministic algorithms": lambda t: _deterministic(t),
        "under autocast": lambda t: _autocast(t),
    },
)
TABLE = [w if w.name != "t @= is no write" else dataclasses.replace(w, changes=False) for w in TABLE]


def _inference(t):
    with torch.inference_mode():
        t.add_(1)


def _deterministic(t):
    torch.use_deterministic_algorithms(True)
    try:
        t.index_put_((INDEX,), torch.tensor(3.0), accumulate=True)
    finally:
        torch.use_deterministic_algorithms(False)


def _autocast(t):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        t.addmm_(torch.ones(SIDE, 3), torch.ones(3, SIDE))


# ------------------------------------------------------------------------------------- .data, set_, resize, storages

ways(
    matrix,
    {
        ".data.add_": lambda t: t.data.add_(1),
        ".data[i]=": lambda t: t.data.__setitem__(3, 0.0),
        ".data = new": lambda t: setattr(t, "data", torch.ones(4, 4)),
        ".data = own view": lambda t: setattr(t, "data", t.data[3:9]),
        ".detach().zero_": lambda t: t.detach().zero_(),
        ".detach()[2:].copy_": lambda t: t.detach()[2:].copy_(torch.ones(SIDE - 2, SIDE)),
        "set_ empty": lambda t: t.set_(),
        "set_ own storage": lambda t: t.set_(t.untyped_storage(), 5, (6, 6), (7, 1)).zero_(),
        "set_ own part": lambda t: t.set_(t[3:6]).mul_(2),
        "resize_ shrink and write": lambda t: t.resize_(5, 5).fill_(1),
        "resize_ grow and write": lambda t: t.resize_(SIDE, SIDE * 3).fill_(1),
        "resize_ shrink and grow back": lambda t: t.resize_(2, 2).resize_(SIDE, SIDE).mul_(2),
        "resize_ to nothing": lambda t: t.resize_(0),
        "resize_as_ larger and write": lambda t: t.resize_as_(torch.empty(SIDE * 2, SIDE)).zero_(),
        "storage resize_ 0": lambda t: (t.untyped_storage().resize_(0) and None) or t.set_(),
        "storage freed and grown back": lambda t: _free_and_regrow(t),
        "storage grown": lambda t: (t.untyped_storage().resize_(SIDE * SIDE * 8), t.add_(1))[0].nbytes(),
        "storage shrunk": lambda t: (
            t.set_(t.untyped_storage(), 0, (4, 4)),
            t.untyped_storage().resize_(64),
            t.add_(1),
        )[2],
        "storage fill_": lambda t: t.untyped_storage().fill_(0) and None,
        "storage [i]=": lambda t: t.untyped_storage().__setitem__(5, 77),
        "storage [:]=": lambda t: t.untyped_storage().__setitem__(slice(None), 1),
        "storage copy_": lambda t: t.untyped_storage().copy_(torch.ones(SIDE, SIDE).untyped_storage()) and None,
        "storage byteswap": lambda t: t.untyped_storage().byteswap(torch.float32),
        "typed storage [i]=": lambda t: t.storage().__setitem__(5, 3.0),
        "typed storage fill_": lambda t: t.storage().fill_(2.0) and None,
        "typed storage copy_": lambda t: t.storage().copy_(torch.ones(SIDE * SIDE).storage()) and None,
        "storage share_memory_, then write": lambda t: (t.untyped_storage().share_memory_(), t.add_(1))[1],
        "share_memory_, then write": lambda t: t.share_memory_().add_(1),
        "swap_tensors": lambda t: torch.utils.swap_tensors(t, torch.ones(3, 3)),
        "requires_grad_ and in-place on a view": lambda t: t.requires_grad_().detach().add_(1).numel(),
        "apply_ on a view": lambda t: t[2:4].apply_(lambda x: -x),
        "map_ on a view": lambda t: t[2:4].map_(t[4:6], lambda a, b: a + b),
        "vectorized python setter": lambda t: [row.__setitem__(0, 1.0) for row in t][:0],
        "frexp out": lambda t: torch.frexp(t.clone(), out=(t, torch.empty(0, dtype=torch.int32))),
        "unsafe set_data": lambda t: (torch._C._autograd._unsafe_set_version_counter((t,), (5,)) and None) or t.add_(1),
        "write in __torch_function__": lambda t: t.as_subclass(Sub).mul_(2).numel(),
    },
)


def _free_and_regrow(t):
    regrown(t)
    t.fill_(4)


# ------------------------------------------------------------------------------------------------------ raw pointers


def _memory(t, size=None):
    return (ctypes.c_char * (size or t.numel() * t.element_size())).from_address(t.data_ptr())


class _Interface:
    """Hands a tensor's address to numpy, through __array_interface__."""

    def __init__(self, t):
        self.keep = t
        self.__array_interface__ = {
            "shape": tuple(t.shape),
            "typestr": "<f4",
            "data": (t.data_ptr(), False),
            "version": 3,
        }


ways(
    matrix,
    {
        "numpy()[...]=": lambda t: t.numpy().__setitem__(..., 1),
        "numpy()[i, j]=": lambda t: t.numpy().__setitem__((3, 4), 1),
        "numpy view of a view": lambda t: t[3:5].t().numpy().__setitem__(0, 9),
        "numpy() of detach": lambda t: t.detach().numpy().fill(2),
        "np.add out": lambda t: np.add(t.numpy(), 1, out=t.numpy()) is None,
        "np.asarray": lambda t: np.asarray(t).__setitem__(0, 4),
        "np.copyto": lambda t: np.copyto(t.numpy(), 3),
        "np.frombuffer": lambda t: np.frombuffer(_memory(t), dtype=np.float32).__setitem__(3, 1),
        "np.from_dlpack": lambda t: _from_dlpack_numpy(t),
        "np.ctypeslib": lambda t: np.ctypeslib.as_array((ctypes.c_float * 4).from_address(t.data_ptr())).fill(1),
        "__array_interface__": lambda t: np.asarray(_Interface(t)).__setitem__(2, 5),
        "numpy sort in place": lambda t: t.numpy().sort(axis=0),
        "numpy.random fill": lambda t: np.random.default_rng(3).random(out=t.numpy(), dtype=np.float32) is None,
        "memoryview": lambda t: memoryview(t.numpy()).cast("B").__setitem__(slice(0, 4), b"abcd"),
        "readinto": lambda t: io.BytesIO(bytes(range(256))).readinto(memoryview(t.numpy()).cast("B")),
        "ctypes memset": lambda t: ctypes.memset(t.data_ptr(), 1, 64) and None,
        "ctypes memmove": lambda t: ctypes.memmove(t.data_ptr(), b"x" * 64, 64) and None,
        "ctypes through a view": lambda t: ctypes.memset(t[5].data_ptr(), 1, 64) and None,
        "ctypes through the storage": lambda t: ctypes.memset(t.untyped_storage().data_ptr(), 1, 64) and None,
        "ctypes array": lambda t: _memory(t).__setitem__(3, b"z"),
        "from_dlpack": lambda t: torch.from_dlpack(t).add_(1).numel(),
        "to_dlpack capsule": lambda t: (
            torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(t))[3].zero_().numel()
        ),
        "from_numpy of numpy": lambda t: torch.from_numpy(t.numpy()).mul_(2).numel(),
        "torch.asarray of numpy": lambda t: torch.asarray(t.numpy()).zero_().numel(),
        "torch.frombuffer of memory": lambda t: torch.frombuffer(_memory(t), dtype=torch.float32).fill_(3).numel(),
    },
)


def _from_dlpack_numpy(t):
    capsule = np.from_dlpack(t)
    if capsule.flags.writeable:
        capsule[1] = 3
    else:
        t[1] = 3


# ---------------------------------------------------------------------------------------------- modules, optimizers

INITS = {
    name: getattr(nn.init, name)
    for name in ("zeros_", "ones_", "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_")
} | {
    "kaiming_uniform_": nn.init.kaiming_uniform_,
    "kaiming_normal_": nn.init.kaiming_normal_,
    "orthogonal_": nn.init.orthogonal_,
    "eye_": nn.init.eye_,
    "constant_": lambda t: nn.init.constant_(t, 3.0),
    "sparse_": lambda t: nn.init.sparse_(t, 0.5),
}
ways(parameter, {f"init.{name}": function for name, function in INITS.items()})
ways(lambda: nn.Parameter(torch.randn(64, 64, 3)), {"init.dirac_": lambda t: nn.init.dirac_(t)})


def x():
    return torch.linspace(-1, 1, 8 * SIDE).view(8, SIDE)


def _train(module, steps=2, optimizer=torch.optim.SGD, **kwargs):
    trainer = optimizer(module.parameters(), lr=0.1, **kwargs)
    for _ in range(steps):
        trainer.zero_grad()
        module(x()).pow(2).sum().backward()
        trainer.step()


def _state(module):
    return {k: torch.full_like(v, 2) for k, v in module.state_dict().items()}


ways(
    mlp,
    {
        "load_state_dict": lambda m: m.load_state_dict(_state(m)) and None,
        "load_state_dict assign": lambda m: m.load_state_dict(_state(m), assign=True) and None,
        "load_state_dict strict=False": lambda m: (
            m.load_state_dict({"0.bias": torch.ones(SIDE)}, strict=False) and None
        ),
        "state_dict()[k].zero_": lambda m: m.state_dict()["0.weight"].zero_().numel(),
        "running statistics": lambda m: m.train()(x()).detach().sum(),
        "train steps, SGD": lambda m: _train(m),
        "train steps, SGD momentum": lambda m: _train(m, momentum=0.9),
        "train steps, Adam": lambda m: _train(m, optimizer=torch.optim.Adam),
        "train steps, AdamW foreach": lambda m: _train(m, optimizer=torch.optim.AdamW, foreach=True),
        "train steps, AdamW fused": lambda m: _train(m, optimizer=torch.optim.AdamW, fused=True),
        "backward fills grad": lambda m: m(x()).sum().backward(),
        "requires_grad_(False)": lambda m: m.requires_grad_(False) and None,
        "to(float64)": lambda m: m.to(torch.float64) and None,
        "half()": lambda m: m.half() and None,
        "module apply": lambda m: m.apply(lambda s: s.weight.data.zero_() if hasattr(s, "weight") else None) and None,
        "reset_parameters": lambda m: m[0].reset_parameters(),
        "reset_running_stats": lambda m: (m(x()), m[1].reset_running_stats(), m[1].running_mean.add_(1))[0].detach(),
        "parameter.data swapped": lambda m: setattr(m[0].weight, "data", m[3].weight.data),
        "parameter.data swapped, then written": lambda m: _swap_and_write(m),
        "parameters tied, then written": lambda m: (setattr(m[0], "weight", m[3].weight), m[0].weight.data.zero_())[:0],
        "vector_to_parameters": lambda m: _vector(m),
        "parameters_to_vector written": lambda m: _written_vector(m),
        "clip_grad_norm_": lambda m: _clipped(m, lambda p: nn.utils.clip_grad_norm_(p, 1e-3)),
        "clip_grad_norm_ foreach": lambda m: _clipped(m, lambda p: nn.utils.clip_grad_norm_(p, 1e-3, foreach=True)),
        "clip_grad_value_": lambda m: _clipped(m, lambda p: nn.utils.clip_grad_value_(p, 1e-3)),
        "weight clipped under no_grad": lambda m: _clip_weights(m),
        "module to_empty": lambda m: (m.to_empty(device="cpu"), [p.data.fill_(1) for p in m.state_dict().values()])[:0],
        "swap_tensors of parameters": lambda m: torch.utils.swap_tensors(m[0].weight, m[3].weight),
        "module share_memory, then train": lambda m: _train(m.share_memory()),
        "pruned": lambda m: (prune.l1_unstructured(m[0], "weight", 0.5), prune.remove(m[0], "weight"))[:0],
        "functional_call": lambda m: torch.func.functional_call(m, {"0.bias": torch.zeros(SIDE)}, (x(),)).detach(),
        "functional_call with own buffers": lambda m: _functional(m),
        "state through pickle, written back": lambda m: (
            m.load_state_dict({k: v * 3 for k, v in pickle.loads(pickle.dumps(m.state_dict())).items()}) and None
        ),
        "state through torch.save, written back": lambda m: (
            m.load_state_dict({k: v * 3 for k, v in saved_and_loaded(m.state_dict()).items()}) and None
        ),
        "copy.copy, then write": lambda m: copy.copy(m)[0].weight.data.zero_().numel(),
        "gradient hooks write": lambda m: _hook(m),
    },
)


def _swap_and_write(m):
    m[0].weight.data = m[3].weight.data
    m[0].weight.data.add_(1)


def _vector(m):
    vector = nn.utils.parameters_to_vector(m.parameters()).detach()
    nn.utils.vector_to_parameters(vector * 2, m.parameters())


def _written_vector(m):
    nn.utils.parameters_to_vector(m.parameters()).detach().zero_()
    m[0].bias.data.add_(1)


def _clipped(m, clip):
    m(x()).pow(2).sum().backward()
    clip(m.parameters())


def _clip_weights(m):
    with torch.no_grad():
        for p in m.parameters():
            p.clamp_(-0.01, 0.01)


def _functional(m):
    state = {k: v.detach() for k, v in m.state_dict().items()}
    torch.func.functional_call(m, state, (x(),))


def _hook(m):
    handle = m[0].weight.register_hook(lambda grad: m[3].bias.data.add_(1) * 0 + grad[:1])
    handle.remove()
    m[3].bias.data.add_(1)


ways(lambda: nn.BatchNorm2d(16), {"BatchNorm2d": lambda m: m(torch.randn(4, 16, 5, 5)).detach()})
ways(lambda: nn.BatchNorm1d(SIDE, momentum=None), {"BatchNorm cumulative": lambda m: m(x()).detach()})
ways(lambda: nn.BatchNorm1d(SIDE).half().float(), {"BatchNorm no_grad": lambda m: torch.no_grad()(m)(x())})
ways(
    lambda: nn.InstanceNorm2d(16, track_running_stats=True),
    {"InstanceNorm2d": lambda m: m(torch.randn(4, 16, 5, 5)).detach()},
)
ways(
    lambda: nn.Embedding(SIDE, SIDE, max_norm=0.5),
    {
        "Embedding renorm": lambda m: m(INDEX).detach(),
        "F.embedding renorm": lambda m: nn.functional.embedding(INDEX, m.weight.detach(), max_norm=0.1),
    },
)
ways(lambda: nn.EmbeddingBag(SIDE, SIDE, max_norm=0.5), {"EmbeddingBag renorm": lambda m: m(INDEX[None]).detach()})
ways(
    lambda: nn.utils.parametrizations.spectral_norm(linear()),
    {"spectral_norm power iteration": lambda m: m(x()).detach()},
)
ways(
    lambda: parametrizations.weight_norm(linear()),
    {
        "weight_norm trained": lambda m: _train(m),
        "weight_norm assigned": lambda m: setattr(m, "weight", torch.ones(SIDE, SIDE)),
    },
)
ways(linear, {"spectral_norm applied": lambda m: parametrizations.spectral_norm(m)(x()).detach()})
ways(linear, {"weight_norm applied, trained": lambda m: _train(parametrizations.weight_norm(m))})
ways(linear, {"orthogonal applied, trained": lambda m: _train(parametrizations.orthogonal(m))})
ways(linear, {"Module.__setattr__ of a parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.ones(3, 3)))})
ways(linear, {"old weight_norm applied": lambda m: nn.utils.weight_norm(m).weight_g.data.zero_().numel()})
ways(linear, {"old spectral_norm applied": lambda m: nn.utils.spectral_norm(m).weight_orig.data.zero_().numel()})
ways(lambda: nn.LSTM(SIDE, SIDE), {"LSTM flatten_parameters and train": lambda m: _train_rnn(m)})
ways(lambda: nn.GRU(SIDE, SIDE, 2), {"GRU trained": lambda m: _train_rnn(m)})
ways(
    conv,
    {
        "conv trained": lambda m: _train_conv(m),
        "channels_last": lambda m: m.to(memory_format=torch.channels_last) and None,
    },
)


def _train_rnn(m):
    m.flatten_parameters()
    trainer = torch.optim.SGD(m.parameters(), lr=0.1)
    m(x()[:, None])[0].sum().backward()
    trainer.step()


def _train_conv(m):
    trainer = torch.optim.SGD(m.parameters(), lr=0.1)
    m(torch.linspace(0, 1, 16 * 64).view(1, 16, 8, 8)).sum().backward()
    trainer.step()


def averaged():
    model = linear()
    return [model, torch.optim.swa_utils.AveragedModel(model)]


AVERAGE = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)


def ema():
    model = linear()
    return [model, torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=AVERAGE)]


def _average(pair):
    with torch.no_grad():
        pair[0].weight.add_(1)
    pair[1].update_parameters(pair[0])
    pair[1].update_parameters(pair[0])


ways(averaged, {"AveragedModel.update_parameters": _average})
ways(ema, {"EMA.update_parameters": _average})
ways(
    lambda: [nn.Sequential(nn.Linear(SIDE, SIDE), nn.BatchNorm1d(SIDE))],
    {"swa update_bn": lambda m: torch.optim.swa_utils.update_bn([x(), x() * 2], m[0])},
)


def trained():
    model = linear()
    optimizer = torch.optim.Adam(model.parameters())
    model(x()).sum().backward()
    optimizer.step()
    return [model, optimizer]


def _step(pair):
    pair[0](x()).pow(2).sum().backward()
    pair[1].step()


ways(
    trained,
    {
        "optimizer step": _step,
        "optimizer state written": lambda p: p[1].state[p[0].weight]["exp_avg"].zero_().numel(),
        "zero_grad in place": lambda p: (_step(p), p[1].zero_grad(set_to_none=False))[:0],
        "optimizer load_state_dict": lambda p: (p[1].load_state_dict(copy.deepcopy(p[1].state_dict())), _step(p))[:0],
    },
)


# ------------------------------------------------------------------------------------- autograd, transforms, compile


def with_grad():
    t = matrix().requires_grad_()
    t.sum().backward()
    return t


class MarkDirty(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        t.add_(1)
        ctx.mark_dirty(t)
        return t

    @staticmethod
    def backward(ctx, grad):
        return grad


ways(
    with_grad,
    {
        "backward accumulates into grad": lambda t: (t * 3).sum().backward(),
        "grad.zero_": lambda t: t.grad.zero_().numel(),
        "grad written through data": lambda t: t.grad.data.add_(1).numel(),
        "grad = None": lambda t: setattr(t, "grad", None),
        "in-place on a leaf under no_grad": lambda t: torch.no_grad()(t.mul_)(2).numel(),
        "autograd.backward into inputs": lambda t: torch.autograd.backward((t**2).sum(), inputs=[t]),
    },
)
ways(
    matrix,
    {
        "autograd.Function mark_dirty": lambda t: MarkDirty.apply(t).numel(),
        "vmap in place": lambda t: torch.vmap(lambda row: row.add_(1))(t).numel(),
        "vmap in place, inner dimension": lambda t: torch.vmap(lambda c: c.mul_(2), in_dims=1)(t).numel(),
        "added to its own grad": lambda t: t.add_(torch.func.grad(lambda v: v.clone().mul_(2).sum())(t)).numel(),
        "copied from its own jvp": lambda t: t.copy_(
            torch.func.jvp(lambda v: v.clone().add_(1), (t,), (t,))[0]
        ).numel(),
        "functionalize": lambda t: torch.func.functionalize(lambda v: v.add_(1))(t).numel(),
        "jacfwd, then written": lambda t: (torch.func.jacfwd(lambda v: v[0, :3] * 2)(t), t.add_(1))[:0],
        "forward AD": lambda t: _forward_ad(t),
        "checkpoint": lambda t: torch.utils.checkpoint.checkpoint(lambda v: v.add_(1), t, use_reentrant=False).numel(),
        "saved tensor hooks": lambda t: _saved_hooks(t),
        "jit.script": lambda t: scripted()(t).numel(),
        "jit.trace": lambda t: traced()(t).numel(),
        "fx interpreter": lambda t: interpreted()(t).numel(),
        "compile eager": lambda t: compiled("eager")(t).numel(),
        "compile aot_eager": lambda t: compiled("aot_eager")(t).numel(),
        "custom operator": lambda t: custom()(t),
        "custom operator with out": lambda t: custom_out()(t),
        "operator registered after the clone": lambda t: late_operator()(t),
        "python library operator": lambda t: library_operator()(t),
        "TorchDispatchMode that redispatches": lambda t: _mode(t),
        "torch.ops.aten": lambda t: torch.ops.aten.add_.Tensor(t, torch.ones(SIDE, SIDE)).numel(),
        "torch.ops.aten out": lambda t: torch.ops.aten.mul.out(t, torch.tensor(2.0), out=t).numel(),
        "torch.ops.prims copy_to": lambda t: torch.ops.prims.copy_to(t, torch.ones(SIDE, SIDE)).numel(),
        "torch._foreach_add_": lambda t: torch._foreach_add_([t], 1),
        "torch._foreach_zero_ on rows": lambda t: torch._foreach_zero_(list(t.unbind())[3:6]),
        "torch._foreach_copy_": lambda t: torch._foreach_copy_([t], [torch.ones(SIDE, SIDE)]),
        "torch._foreach_copy_ swapping rows": lambda t: torch._foreach_copy_([t[0], t[1]], [t[1], t[0]]),
        "torch._foreach_add_ twice the same": lambda t: torch._foreach_add_([t, t], 1),
        "torch._fused_sgd_": lambda t: _fused_sgd(t),
        "torch._amp_foreach_non_finite_check_and_unscale_": lambda t: torch._amp_foreach_non_finite_check_and_unscale_(
            [t], torch.zeros(1), torch.tensor(0.5)
        ),
        "nan_to_num_ of NaN": lambda t: t.div_(0).sub_(t).nan_to_num_(3).numel(),
        "segment of a flattened list": lambda t: torch._utils._unflatten_dense_tensors(t.view(-1), [t[:3], t[3:]])[
            0
        ].zero_(),
        "deepcopy of the relative, then write": lambda t: (copy.deepcopy(t).zero_(), t.add_(1))[:0],
        "torch.save of the relative, then write": lambda t: (saved_and_loaded(t), t.add_(1))[:0],
        "pickle of the relative, then write": lambda t: (pickle.loads(pickle.dumps(t)).zero_(), t.add_(1))[:0],
        "conj_physical_ and neg": lambda t: t.neg_().conj_physical_().numel(),
        "numpy, then write by torch": lambda t: (t.numpy(), t.add_(1))[:0],
        "torch._lazy_clone written": lambda t: torch._lazy_clone(t).zero_().numel(),
        "torch._lazy_clone, then write": lambda t: (torch._lazy_clone(t), t.add_(1))[:0],
    },
)
ways(
    pair,
    {
        "swap_tensors within": lambda p: torch.utils.swap_tensors(p[0], p[1]),
        "copy_ from the sibling": lambda p: p[0].copy_(p[1]).numel(),
        "set_ to the sibling, write": lambda p: p[0].set_(p[1]).zero_().numel(),
        "torch._foreach_mul_": lambda p: torch._foreach_mul_(p, 2),
        "torch._foreach_lerp_": lambda p: torch._foreach_lerp_(p, p[::-1], 0.5),
        "torch._foreach_addcdiv_": lambda p: torch._foreach_addcdiv_(p, [p[1], p[1]], [p[0], p[0]]),
        "torch._foreach_clamp_max_": lambda p: torch._foreach_clamp_max_(p, 0.6),
        "torch.aminmax out": lambda p: torch.aminmax(p[0].clone(), dim=0, out=(p[0], p[1])),
        "torch.sort out": lambda p: torch.sort(p[0].clone(), out=(p[1], torch.empty(0, dtype=torch.long))),
        "torch.add out the sibling": lambda p: torch.add(p[0], p[1], out=p[1]).numel(),
    },
)
ways(
    complex_matrix,
    {
        "real.zero_": lambda t: t.real.zero_().numel(),
        "imag.mul_": lambda t: t.imag.mul_(2).numel(),
        "conj().add_": lambda t: t.conj().add_(1j).numel(),
        "view_as_real[...]=": lambda t: torch.view_as_real(t).__setitem__((..., 0), 5.0),
        ".real = tensor": lambda t: setattr(t, "real", torch.ones(SIDE, SIDE)),
        ".imag = tensor": lambda t: setattr(t, "imag", torch.ones(SIDE, SIDE)),
        "angle and abs out": lambda t: torch.mul(t, 2j, out=t).numel(),
    },
)
ways(
    integers,
    {
        "iand": lambda t: t.__iand__(6),
        "ior": lambda t: t.__ior__(6),
        "ixor": lambda t: t.__ixor__(6),
        "ilshift": lambda t: t.__ilshift__(2),
        "irshift": lambda t: t.__irshift__(2),
        "scatter_add_ counts": lambda t: (
            t.view(-1).scatter_add_(0, t.view(-1).clone(), torch.ones_like(t.view(-1))).numel()
        ),
    },
)
ways(booleans, {"logical_not_": lambda t: t.logical_not_().numel(), "bool iand": lambda t: t.__iand__(MASK)})
ways(
    sparse,
    {
        "sparse values add_": lambda t: t._values().add_(1).numel(),
        "sparse mul_": lambda t: t.mul_(2).shape,
        "sparse add_": lambda t: t.add_(t.clone()).shape,
        "sparse zero_": lambda t: t.zero_().shape,
        "sparse coalesced values": lambda t: t.coalesce().values().zero_().numel(),
        "sparse copy_": lambda t: t.copy_(sparse().mul_(3)).shape,
    },
)
TABLE = [
    dataclasses.replace(w, changes=False) if w.name in ("sparse coalesced values", "torch._lazy_clone written") else w
    for w in TABLE
]
ways(
    quantized,
    {
        "quantized copy_": lambda t: t.copy_(torch.ones(SIDE, SIDE)).numel(),
        "quantized fill_": lambda t: t.fill_(1.0).numel(),
        "quantized index": lambda t: t.__setitem__(3, torch.ones(SIDE)),
        "quantized zero-point write": lambda t: t.relu_().numel(),
    },
)
ways(quantized_per_channel, {"quantized per channel copy_": lambda t: t.copy_(_other_channels()).numel()})


def _other_channels():
    return torch.quantize_per_channel(
        torch.ones(SIDE, SIDE), torch.full((SIDE,), 0.1), torch.zeros(SIDE), 0, torch.qint8
    )


def _forward_ad(t):
    with torch.autograd.forward_ad.dual_level():
        torch.autograd.forward_ad.make_dual(t, torch.ones_like(t)).clone().add_(1)
        t.add_(1)


def _saved_hooks(t):
    with torch.autograd.graph.saved_tensors_hooks(lambda v: v.numpy().copy(), lambda v: torch.from_numpy(v)):
        leaf = torch.ones(SIDE, SIDE, requires_grad=True)
        (leaf * t).sum().backward()
    t.add_(leaf.grad)


SGD = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.5, "dampening": 0.0, "nesterov": False, "maximize": False}


def _fused_sgd(t):
    torch._fused_sgd_([t], [torch.ones_like(t)], [], **SGD, is_first_step=False)


def _mode(t):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Redispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Redispatch():
        t.mul_(3)
        t[2:4].zero_()


def _mul_and_zero(t: torch.Tensor) -> torch.Tensor:
    t.mul_(3)
    t[2:4].zero_()
    return t


scripted = functools.cache(lambda: torch.jit.script(_mul_and_zero))
traced = functools.cache(lambda: torch.jit.trace(_mul_and_zero, (torch.ones(SIDE, SIDE),)))
interpreted = functools.cache(lambda: torch.fx.symbolic_trace(_mul_and_zero))
compiled = functools.cache(lambda backend: torch.compile(_mul_and_zero, backend=backend))


@functools.cache
def custom():
    @torch.library.custom_op("torchcow_tests::triple_", mutates_args=("t",))
    def triple_(t: torch.Tensor) -> None:
        t.numpy()[...] *= 3

    return triple_


@functools.cache
def custom_out():
    @torch.library.custom_op("torchcow_tests::halve_into", mutates_args=("out",))
    def halve_into(t: torch.Tensor, out: torch.Tensor) -> None:
        torch.div(t, 2, out=out)

    return lambda t: halve_into(t + 1, t)


NUMBER = iter(range(10**6))


def late_operator():
    """A new operator each time: registered after the clone was made."""
    library = torch.library.Library("torchcow_tests", "FRAGMENT")
    name = f"late_{next(NUMBER)}_"
    library.define(f"{name}(Tensor(a!) t) -> ()")
    library.impl(name, lambda t: t.copy_(t * 5) and None, "CPU")

    def call(t):
        getattr(torch.ops.torchcow_tests, name)(t)
        del library.m  # the operator goes when its library goes

    call.library = library
    return call


@functools.cache
def library_operator():
    library = torch.library.Library("torchcow_tests", "FRAGMENT")
    library.define("early_(Tensor(a!) t, Tensor b) -> Tensor(a!)")
    library.impl("early_", lambda t, b: t.add_(b), "CompositeExplicitAutograd")
    _mul_and_zero.library = library
    return lambda t: torch.ops.torchcow_tests.early_(t, torch.ones(SIDE, SIDE)).numel()
