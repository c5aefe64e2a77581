"""A step of a recurrence, written down: which operations it applied to what.

There is no second set of operations here: what is written down are the rules of `tinygrad_rnn.ops` themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from tinygrad_rnn.ops.declare import apply, apply_with_results
from tinygrad_rnn.ops.rule import Rule
from tinygrad_rnn.tape import MODE, Node, no_grad
from tinygrad_rnn.tensor import Tensor

PRODUCTS = ("matmul", "einsum")  # rules
REDUCTIONS = ("sum", "mean", "max", "min")


class Value:
    """A tensor of the step, of which shape and dtype are known, and how it came about (None: from outside)."""

    __slots__ = ("dtype", "name", "op", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], op: Op | None = None) -> None:
        self.shape = shape
        self.dtype = dtype
        self.op = op
        self.name = ""  # what the cell calls it, if that was asked for

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def bytes(self) -> int:
        """Memory for one step."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Op:
    """One operation of the step.

    Attributes
    ----------
    rule, params
        The operation and its static arguments.
    operands
        Values, and Python numbers.
    results
        Values; one, unless the operation gives a list.
    recording
        Whether gradients pass through it: False under `no_grad`.
    place
        File and line in the cell, if they were asked for.
    """

    __slots__ = ("operands", "params", "place", "recording", "results", "rule")

    def __init__(self, rule: Rule, operands: tuple[Any, ...], params: tuple[Any, ...], recording: bool) -> None:
        self.rule = rule
        self.operands = operands
        self.params = params
        self.recording = recording
        self.results: tuple[Value, ...] = ()
        self.place: tuple[str, int] | None = None

    @property
    def inputs(self) -> list[Value]:
        """The operands that are values."""
        return [operand for operand in self.operands if type(operand) is Value]

    @property
    def named(self) -> dict[str, Any]:
        """The static arguments by their names."""
        return dict(zip(self.rule.params, self.params, strict=True))

    def forward(self, F: Any, *operands: Any) -> Any:
        """Do what it does, to arrays of ``F``."""
        return self.rule.forward(F, *operands, **self.named) if self.params else self.rule.forward(F, *operands)

    def __repr__(self) -> str:
        return f"<{self.rule.name}>"


@dataclass
class Step:
    """What one step does.

    Attributes
    ----------
    xs
        Values that are another at each step: inputs, masks, what the generators drew.
    carry, following
        The state that the step was given, and the one that it leaves.
    consts
        Values that are the same at each step.
    ys
        The outputs.
    totals
        Values of which the sum over all steps is wanted.
    literals
        Those of ``consts`` that are known already.
    """

    xs: list[Value]
    carry: list[Value]
    consts: list[Value]
    ops: list[Op] = field(default_factory=list)
    ys: list[Value] = field(default_factory=list)
    following: list[Value] = field(default_factory=list)
    totals: list[Value] = field(default_factory=list)
    literals: dict[Value, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> int:
        """Equal for steps that do the same, whatever tensors they do it to; to be asked for when the step is done."""
        if len(_keys) > MOST_KEYS:
            _keys.clear()
        return _keys.setdefault(self._structure(), next(_numbers))

    def _structure(self) -> tuple[Any, ...]:
        numbers = {value: i for i, value in enumerate([*self.xs, *self.carry, *self.consts])}
        given = tuple((value.shape, value.dtype) for value in numbers)
        ops = []
        for op in self.ops:
            operands = tuple([(numbers[o],) if type(o) is Value else hashable(o) for o in op.operands])
            ops.append((op.rule, operands, hashable(op.params), op.recording))
            for result in op.results:
                numbers[result] = len(numbers)
        ends = [tuple([numbers[value] for value in values]) for values in (self.ys, self.following, self.totals)]
        return len(self.xs), len(self.carry), given, tuple(ops), *ends

    def pruned(self) -> list[Op]:
        """The operations that outputs, following state and totals depend on."""
        return needed_for([*self.ys, *self.following, *self.totals], self.ops)


MOST_KEYS = 4096
_keys: dict[tuple[Any, ...], int] = {}
_numbers = count()


def needed_for(values: Iterable[Value], ops: Sequence[Op]) -> list[Op]:
    """Those of ``ops`` that ``values`` depend on."""
    wanted = set(values)
    kept = []
    for op in reversed(ops):
        if not wanted.isdisjoint(op.results):
            kept.append(op)
            wanted.update(op.inputs)
    return kept[::-1]


def hashable(param: Any) -> Any:
    """A number or static argument in a form that can be a key."""
    if isinstance(param, (tuple, list)):
        return tuple([hashable(item) for item in param])
    if isinstance(param, slice):
        return "slice", param.start, param.stop, param.step
    return (type(param), repr(param)) if isinstance(param, (float, int)) else param  # -0.0 is not 0.0, nor 1 True


def replay(op: Op, values: dict[Value, Tensor]) -> None:
    """Do what ``op`` did, to the tensors that ``values`` holds, and add its results."""
    operands = tuple([values[o] if type(o) is Value else o for o in op.operands])
    run = apply_with_results if op.rule.several else apply
    if op.recording:
        results: Any = run(op.rule, operands, op.params)
    else:
        with no_grad():
            results = run(op.rule, operands, op.params)
    values.update(zip(op.results, results if op.rule.several else (results,), strict=True))


class Recorder:
    """A listener of the tape that writes operations down.

    Only operations on tensors that are known to it are written: `meet` makes one known. What else these operate on
    becomes a constant.
    """

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.constants: dict[Value, Tensor] = {}
        self._values: dict[int, Value] = {}
        self._by_node: dict[Node, Value] = {}
        self._alive: list[Tensor] = []  # an id is only worth something while its tensor lives
        self._constants: dict[int, Value] = {}

    def meet(self, tensor: Tensor, value: Value | None = None) -> Value:
        """Make ``tensor`` known."""
        if value is None:
            value = Value(tensor.shape, tensor.dtype)
        self._values[id(tensor)] = value
        self._alive.append(tensor)
        if tensor._node is not None:
            self._by_node[tensor._node] = value
        return value

    def find(self, tensor: Tensor) -> Value | None:
        """The value that ``tensor`` is known as."""
        value = self._values.get(id(tensor))
        if value is None and tensor._node is not None:  # a VJP is handed its own result in a new tensor
            value = self._by_node.get(tensor._node)
        return value

    def value(self, tensor: Tensor) -> Value:
        """The value that ``tensor`` is known as, or else a constant."""
        value = self.find(tensor) or self._constants.get(id(tensor))
        if value is None:
            value = self._constants[id(tensor)] = Value(tensor.shape, tensor.dtype)
            self.constants[value] = tensor
            self._alive.append(tensor)
        return value

    def __call__(self, rule: Rule, operands: Sequence[Any], params: tuple[Any, ...], results: Sequence[Tensor]) -> None:
        if not rule.alters:
            for operand in operands:
                if isinstance(operand, Tensor) and self.find(operand) is not None:
                    break
            else:
                return
        self.note(rule, operands, params, results)

    def note(self, rule: Rule, operands: Sequence[Any], params: tuple[Any, ...], results: Sequence[Tensor]) -> None:
        """Write an operation down."""
        written = tuple([self.value(o) if isinstance(o, Tensor) else o for o in operands])
        op = Op(rule, written, params, MODE.get().recording)
        op.results = tuple([self.meet(result, Value(result.shape, result.dtype, op)) for result in results])
        self.ops.append(op)
