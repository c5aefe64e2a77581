"""`Tensor`: the user's face of the tape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import ref

import numpy as np

from tinygrad_rnn import tape
from tinygrad_rnn.backend import Array, Backend, backend_of, get_backend

TensorLike: TypeAlias = "Tensor | Array | Sequence[Any] | float | int | bool"


class Tensor:
    """An array that remembers how it was computed.

    Parameters
    ----------
    data
        An array, whose memory is shared; a number; or a nest of lists of numbers.
    requires_grad
        Whether `backward` should leave this tensor's gradient in ``grad``.
    dtype
        If None: arrays keep theirs, Python and NumPy floats and lists of them become float32, ints and bools keep
        their kind.

    Raises
    ------
    TypeError
        If ``data`` does not hold real numbers or bools, or ``requires_grad`` is asked of ints or bools.
    """

    __slots__ = ("__weakref__", "_base", "_data", "_node", "_shared", "_written", "grad", "requires_grad")
    __array_ufunc__ = None  # so that NumPy's operators leave ``array + tensor`` to us

    _data: Array
    _node: tape.Node | None  # None for leaves
    _base: Tensor | None  # the leaf whose memory this tensor is a view of
    _shared: ref[tape.Node] | None  # see ops.declare.shared
    _written: int  # when an optimizer or load_state_dict last wrote to the data, by the tape's clock
    requires_grad: bool
    grad: Tensor | None

    def __init__(self, data: TensorLike, requires_grad: bool = False, dtype: Any = None) -> None:
        array = _as_array(data, dtype)
        if requires_grad and array.dtype.kind != "f":
            raise TypeError(f"only floating-point tensors can require gradients, got dtype {array.dtype}")
        self._data = array
        self._node = None
        self._base = data._memory if isinstance(data, Tensor) and array is data._data else None
        self._shared = None
        self._written = 0
        self.requires_grad = requires_grad
        self.grad = None

    @property
    def data(self) -> Array:
        """The raw array. Writing into it goes unseen by a recorded graph; assigning to ``data`` does not."""
        return self._data

    @data.setter
    def data(self, value: Array) -> None:
        if backend_of(value) is None:
            raise TypeError(f"data must be an array, got {type(value).__name__}")
        if self._node is not None:
            raise RuntimeError(f"cannot replace the data of {_name(self)}: it is the result of {self._made_by!r}")
        self._data = value
        self._written = tape.tick()

    def _touch(self) -> None:
        """Note that the data has been written in place, so that a graph which still needs the old values raises."""
        self._owner._written = tape.tick()

    @property
    def _owner(self) -> Tensor:
        """The tensor whose memory this is in the end: a leaf may have become a view of the parameter made of it."""
        owner = self
        while owner._base is not None:
            owner = owner._base
        return owner

    @property
    def _memory(self) -> Tensor | None:
        """The leaf that owns this tensor's memory, None if nobody can write to it."""
        return self if self._node is None and self._base is None else self._base

    @property
    def _made_by(self) -> str:
        return "" if self._node is None else str(self._node.rule.name)

    @property
    def backend(self) -> str:
        """Name of the backend that holds the data."""
        return _backend(self).name

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return self._data.shape  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._data.ndim  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._data.size  # type: ignore[no-any-return]

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the elements."""
        return self._data.dtype  # type: ignore[no-any-return]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            from tinygrad_rnn.elsewhere import missing

            raise missing("Tensor", name)

    @property
    def T(self) -> Tensor:
        """The tensor with its axes reversed."""
        return declare.transposed(self)

    def numpy(self) -> np.ndarray[Any, Any]:
        """The data as a NumPy array: the same memory on NumPy, a copy on the host from elsewhere."""
        return _backend(self).to_numpy(self._data)

    def item(self) -> Any:
        """The only element, as a Python number.

        Raises
        ------
        ValueError
            If there is not exactly one element.
        """
        if self.size != 1:
            raise ValueError(f"item() needs a tensor of one element, got shape {self.shape}")
        return self.numpy().item()

    def detach(self) -> Tensor:
        """The same data, out of the graph: no gradient passes through the result."""
        return ops.stop_gradient(self)

    def to(self, backend: str | None = None, dtype: Any = None) -> Tensor:
        """This tensor on another backend, of another dtype, or both; gradients flow back through the move."""
        result = self
        if backend is not None and backend != self.backend:
            result = ops.to_backend(result, backend)
        return result if dtype is None or result.dtype == dtype else ops.astype(result, dtype)

    def backward(
        self, grad: TensorLike | None = None, retain_graph: bool | None = None, create_graph: bool = False
    ) -> None:
        """Add to every leaf's ``grad`` the gradient of this tensor by that leaf.

        Parameters
        ----------
        grad
            The cotangent of this tensor; 1 if this tensor has one element.
        retain_graph
            Keep the graph for another backward; None means ``create_graph``.
        create_graph
            Record the backward pass itself, so that gradients can be differentiated.

        Raises
        ------
        RuntimeError
            If this tensor needs no gradient, is not a scalar and no ``grad`` is given, if its graph was freed by an
            earlier backward, or if a tensor that the graph needs was written since.
        """
        gradients.backward(self, grad, create_graph if retain_graph is None else retain_graph, create_graph)

    def __getstate__(self) -> Any:
        """For copy and pickle: a copy has no part in the graphs that use the original."""
        if self._node is not None:
            raise RuntimeError(f"cannot copy {_name(self)}, the result of {self._made_by!r}: detach() it first")
        state: Any = object.__getstate__(self)
        attributes, slots = state
        return attributes, slots | {"_shared": None}

    def __repr__(self) -> str:
        return f"tensor({self._describe()})"

    def _describe(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="tensor(", threshold=100)
        made_by = f", op={self._made_by}" if self._node is not None else ""
        needs = ", requires_grad=True" if self.requires_grad and self._node is None else ""
        shape = "" if self.size and self.size <= 100 else f", shape={self.shape}"
        return f"{values}{shape}, dtype={self.dtype}, backend={self.backend}{made_by}{needs}"

    def _repr_html_(self) -> str:
        from html import escape

        facts = f"{'×'.join(map(str, self.shape)) or 'scalar'} · {self.dtype} · {self.backend}"
        if self.requires_grad:
            facts += f" · from <code>{escape(self._made_by)}</code>" if self._node is not None else " · requires grad"
        array = self.numpy()
        if 1 <= array.ndim <= 2 and array.size and max(array.shape) <= 20:
            rows = "".join(
                "<tr>" + "".join(f"<td>{value:.6g}</td>" for value in row) + "</tr>"
                for row in np.atleast_2d(array).tolist()
            )
            return f"<div><small>{facts}</small><table>{rows}</table></div>"
        values = escape(np.array2string(array, separator=", ", threshold=100))
        return f"<div><small>{facts}</small><pre>{values}</pre></div>"

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a 0-d tensor")
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d tensor")
        return iter(ops.unstack(self))

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(f"the truth of a tensor of shape {self.shape} is ambiguous; use tg.any or tg.all")
        return bool(self.numpy().item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"only a tensor of one int can be used as an index, got dtype {self.dtype}")
        return int(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if self.backend != "numpy":
            raise TypeError(f"a tensor on {self.backend} becomes a NumPy array only by .numpy()")
        return np.array(self._data, dtype=dtype, copy=copy)

    def __getitem__(self, index: Any) -> Tensor:
        return ops.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "tensors are not written in place, since a graph may need their old values: use tg.where(mask, new, old), "
            "tg.concatenate or tg.scatter_add, or fill a NumPy array before making a tensor of it"
        )

    def __neg__(self) -> Tensor:
        return ops.negative(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return ops.abs(self)

    def __add__(self, other: TensorLike) -> Tensor:
        return ops.add(self, other)

    def __radd__(self, other: TensorLike) -> Tensor:
        return ops.add(other, self)

    def __sub__(self, other: TensorLike) -> Tensor:
        return ops.subtract(self, other)

    def __rsub__(self, other: TensorLike) -> Tensor:
        return ops.subtract(other, self)

    def __mul__(self, other: TensorLike) -> Tensor:
        return ops.multiply(self, other)

    def __rmul__(self, other: TensorLike) -> Tensor:
        return ops.multiply(other, self)

    def __truediv__(self, other: TensorLike) -> Tensor:
        return ops.divide(self, other)

    def __rtruediv__(self, other: TensorLike) -> Tensor:
        return ops.divide(other, self)

    def __floordiv__(self, other: TensorLike) -> Tensor:
        return ops.floor_divide(self, other)

    def __mod__(self, other: TensorLike) -> Tensor:
        return ops.remainder(self, other)

    def __pow__(self, other: TensorLike) -> Tensor:
        return ops.power(self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return ops.power(other, self)

    def __matmul__(self, other: TensorLike) -> Tensor:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: TensorLike) -> Tensor:
        return ops.matmul(other, self)

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return ops.equal(self, other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return ops.not_equal(self, other)

    def __lt__(self, other: TensorLike) -> Tensor:
        return ops.less(self, other)

    def __le__(self, other: TensorLike) -> Tensor:
        return ops.less_equal(self, other)

    def __gt__(self, other: TensorLike) -> Tensor:
        return ops.greater(self, other)

    def __ge__(self, other: TensorLike) -> Tensor:
        return ops.greater_equal(self, other)

    def __invert__(self) -> Tensor:
        return ops.logical_not(self)

    def __and__(self, other: TensorLike) -> Tensor:
        return ops.logical_and(self, other)

    def __or__(self, other: TensorLike) -> Tensor:
        return ops.logical_or(self, other)

    __hash__ = object.__hash__

    def reshape(self, *shape: Any) -> Tensor:
        """See `tinygrad_rnn.reshape`; the shape may be given as separate ints."""
        return ops.reshape(self, shape[0] if len(shape) == 1 else shape)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `tinygrad_rnn.sum`."""
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `tinygrad_rnn.mean`."""
        return ops.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `tinygrad_rnn.max`."""
        return ops.max(self, axis, keepdims)

    def astype(self, dtype: Any) -> Tensor:
        """See `tinygrad_rnn.astype`."""
        return ops.astype(self, dtype)


_new = object.__new__  # a third of the time that calling a class takes


def _wrap(array: Array, node: tape.Node | None = None) -> Tensor:
    """A tensor around a raw array, as fast as can be."""
    tensor = _new(Tensor)
    tensor._data = array
    tensor._node = node
    tensor._base = None
    tensor._shared = None
    tensor._written = 0
    tensor.requires_grad = node is not None
    tensor.grad = None
    return tensor


def as_tensor(value: TensorLike, dtype: Any = None) -> Tensor:
    """``value`` itself if it is a tensor, else a tensor of it."""
    return value if isinstance(value, Tensor) else Tensor(value, dtype=dtype)


def _backend(tensor: Tensor) -> Backend:
    backend = backend_of(tensor._data)
    assert backend is not None
    return backend


def _name(tensor: Tensor) -> str:
    """How error messages call a tensor."""
    name = getattr(tensor, "name", "")
    return f"{name + ', ' if name else ''}a tensor of shape {tensor.shape}"


def _as_array(data: Any, dtype: Any = None) -> Array:
    """``data`` as a raw array by the rules of `Tensor`."""
    if isinstance(data, Tensor):
        array = data.data  # not ``_data``, so that a tensor which is being recorded can refuse
    elif (backend := backend_of(data)) is not None:
        array = data if type(data) in (np.ndarray, backend.array_type) else backend.asarray(data)
    else:
        if isinstance(data, (list, tuple)) and any(isinstance(item, Tensor) and item.requires_grad for item in data):
            raise TypeError("a tensor made of a list of tensors would lose their gradients: use tg.stack(list)")
        try:
            host = np.asarray(data)
        except ValueError as error:
            raise TypeError(f"cannot make a tensor of {type(data).__name__}: {error}") from None
        if dtype is None and host.dtype == np.float64 and not isinstance(data, np.ndarray):
            dtype = np.float32
        array = host
        if host.dtype.kind in "fiub":
            array = get_backend().asarray(host, dtype=dtype)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a tensor holds real numbers or bools, got {type(data).__name__} with dtype {array.dtype}")
    if dtype is not None and array.dtype != dtype:
        if np.dtype(dtype).kind not in "fiub":
            raise TypeError(f"dtype must be a real or bool dtype, got {np.dtype(dtype)}")
        array = array.astype(dtype)
    return array


# The one upward edge: a tensor's operators call operations, and its backward walks them.
from tinygrad_rnn import gradients, ops  # noqa: E402
from tinygrad_rnn.ops import declare  # noqa: E402
