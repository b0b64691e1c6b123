"""What lies between quantized layers, on the CPU, as operators of torch: float32 inside, whatever the tensors' dtype.

    mixdq::cpu_attention  q [batch, queries, heads * dim], k and v [batch, keys, heads * dim] -> shape of q
    mixdq::cpu_geglu      x [..., 2 * width] -> [..., width]

torch's own attention computes bfloat16 in products that many CPUs have no fast units for, and wants heads as an axis of
their own; its gate is three passes. Importing this module registers the operators; they have no derivatives.
"""

from typing import Any

import torch
from torch import Tensor

from mixdq.runtime.kernels import native

_LIBRARY: Any = torch.library.Library("mixdq", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("cpu_attention(Tensor q, Tensor k, Tensor v, int heads) -> Tensor")
_LIBRARY.define("cpu_geglu(Tensor x) -> Tensor")


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return softmax(q k^T / sqrt(dim)) v for each head, in the dtype of `q`, contiguous.

    Raises:
        ValueError: shapes or dtypes do not fit each other, or are none the kernel knows.
        CompilerError: there is no library.
    """
    # Compilers see an operator; calling one takes longer than a small head.
    y: Tensor = torch.ops.mixdq.cpu_attention(q, k, v, heads) if _is_seen(q) else _attention(q, k, v, heads)
    return y


def geglu(x: Tensor) -> Tensor:
    """Return the first half of the last axis times the GELU (by the error function) of the second half.

    Raises:
        ValueError: the last axis is odd, or the dtype none the kernel knows.
        CompilerError: there is no library.
    """
    y: Tensor = torch.ops.mixdq.cpu_geglu(x) if _is_seen(x) else _geglu(x)
    return y


def _is_seen(x: Tensor) -> bool:
    """Return whether anybody looks at calls instead of making them."""
    return torch.compiler.is_compiling() or type(x) is not Tensor


def _geglu(x: Tensor) -> Tensor:
    if x.dim() == 0 or x.shape[-1] % 2 or x.dtype not in native.DTYPES:
        raise ValueError(
            f"geglu: expected [..., 2 * width] in one of {list(native.DTYPES)}, found {x.dtype} {list(x.shape)}"
        )
    x, y = x.contiguous(), _fake_geglu(x)
    rows, width = x.shape[:-1].numel(), y.shape[-1]
    native.library().mixdq_geglu(
        x.data_ptr(), native.DTYPES[x.dtype], rows, width, y.data_ptr(), torch.get_num_threads()
    )
    return y


def _fake_geglu(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    _check(q, k, v, heads)
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    if k.shape[1] == 0:
        return y.zero_()
    q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
    dim = q.shape[2] // heads
    failed = native.library().mixdq_attention(
        *(q.data_ptr(), q.stride(0), q.stride(1)),
        *(k.data_ptr(), k.stride(0), k.stride(1)),
        *(v.data_ptr(), v.stride(0), v.stride(1)),
        *(native.DTYPES[q.dtype], q.shape[0], q.shape[1], k.shape[1], heads, dim, dim**-0.5),
        *(y.data_ptr(), torch.get_num_threads()),
    )
    if failed:
        raise MemoryError(f"no memory for the keys and values of a head ({k.shape[1]} tokens of {dim})")
    return y


def _check(q: Tensor, k: Tensor, v: Tensor, heads: int) -> None:
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or (q.shape[0], q.shape[2]) != (k.shape[0], k.shape[2]):
        raise ValueError(f"attention: expected q [batch, queries, width] and k, v [batch, keys, width], found {shapes}")
    if heads < 1 or q.shape[2] == 0 or q.shape[2] % heads:
        raise ValueError(f"attention: a width of {q.shape[2]} cannot be shared by {heads} heads")
    if q.dtype not in native.DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"attention: expected one dtype of {list(native.DTYPES)}, found {q.dtype}, {k.dtype}, {v.dtype}"
        )


def _fake(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


_LIBRARY.impl("cpu_attention", _attention, "CPU")
torch.library.register_fake("mixdq::cpu_attention", _fake, lib=_LIBRARY)
_LIBRARY.impl("cpu_geglu", _geglu, "CPU")
torch.library.register_fake("mixdq::cpu_geglu", _fake_geglu, lib=_LIBRARY)
