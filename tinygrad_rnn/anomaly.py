"""`detect_anomaly`: which operation, line and time step the first NaN or infinity comes from, forward or backward."""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinygrad_rnn import tape
from tinygrad_rnn.backend import backend_of
from tinygrad_rnn.ops.declare import BROADCAST, CAST
from tinygrad_rnn.ops.rule import Operands, Rule
from tinygrad_rnn.tape import SELECT, Node
from tinygrad_rnn.tensor import Tensor


@dataclass(frozen=True)
class Range:
    """What values an array holds.

    Attributes
    ----------
    shape, dtype
        Of the array.
    low, high
        The least and the greatest finite element; None if there is none.
    nans, infinities
        How many elements are NaN, and how many infinite.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float | None
    high: float | None
    nans: int
    infinities: int

    def __str__(self) -> str:
        values = "no finite value" if self.low is None else f"from {self.low:.6g} to {self.high:.6g}"
        return f"shape {self.shape}, {self.dtype}, {values}, {self.nans} NaN, {self.infinities} infinite"


class AnomalyError(ArithmeticError):
    """A NaN or an infinity, and where it comes from.

    Attributes
    ----------
    operation
        The operation's name.
    backward
        Whether its vector-Jacobian product (VJP) is to blame, not its forward.
    file, line, text
        The user's line that called the operation: of the frames outside this library the innermost.
    step
        How many times that call had run, this one included: in an unrolled loop the time step, counted from 1.
    ranges
        The values of the operands and results, or of all that the VJP read and gave, by name.
    """

    operation: str
    backward: bool
    file: str
    line: int
    text: str
    step: int
    ranges: dict[str, Range]


@dataclass(frozen=True)
class _Site:
    """Where an operation was called; ``order`` is 0 there, 1 in the gradient of that call, 2 in that one's."""

    operation: str
    file: str
    line: int
    function: str
    step: int
    order: int = 0


# Where the operation was called whose VJP is running: what a recorded VJP computes belongs to the same place.
_PULLING: ContextVar[_Site | None] = ContextVar("tinygrad_rnn_pulling", default=None)


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Raise `AnomalyError` at the first NaN or infinity; a context manager and a decorator.

    It holds for this thread or asyncio task alone, and is slow: every value is looked at. A graph recorded inside is
    checked wherever it is walked backwards; one recorded outside is not checked in its backward.

    Forward, an operation is to blame if

    * its result holds a NaN, whether it made it or an operand, say a batch of data, brought it in. A NaN that is
      dropped, as padding is by `where`, is none of the result;
    * its result holds an infinity and no operand does, or a parameter does. Infinite data, such as a mask of
      ``-inf`` on its way to a softmax, may pass until a NaN is made of it.

    Backward, every cotangent that is not finite counts.

    Steps are counted anew after each backward. Two calls are the same if the whole path of calls to them is, so two
    layers that share a cell's code are counted apart.

    Raises
    ------
    AnomalyError
        With the operation, the line, the time step, and the ranges of what went in and came out.
    """
    watch = _Watch(tape.MODE.get().listener)
    with np.errstate(all="ignore"), tape.listen(watch.hear):  # ours is the better report
        yield


class _Watch:
    """The listener of one `detect_anomaly`."""

    def __init__(self, outer: Any) -> None:
        self.outer = outer
        self.calls: Counter[Any] = Counter()
        self.walked = False  # whether a backward has run since the last operation

    def hear(self, rule: Rule, operands: Sequence[Any], params: tuple[Any, ...], results: Sequence[Tensor]) -> None:
        if self.outer is not None:
            self.outer(rule, operands, params, results)
        site = _PULLING.get()
        if site is None:
            if self.walked:
                self.calls.clear()
                self.walked = False
            site = self._site(rule)
            _check_forward(rule, operands, results, site)
        else:  # not checked: a VJP may drop a NaN again, and what it gives in the end is checked
            site = replace(site, order=site.order + 1)
        for result in results:
            if result._node is not None:
                self._follow(result._node, site)

    def _site(self, rule: Rule) -> _Site:
        """The user's line, and how many times this path of calls has led to this operation."""
        path: list[Any] = [rule.name]
        frame: Any = sys._getframe()
        user: Any = None
        while frame is not None:
            path.append((frame.f_code, frame.f_lasti))
            module = frame.f_globals.get("__name__", "").partition(".")[0]
            if user is None and module not in ("tinygrad_rnn", "contextlib"):  # contextlib calls what it decorates
                user = frame
            frame = frame.f_back
        key = tuple(path)
        self.calls[key] += 1
        if user is None:  # a program that is this library itself
            user = sys._getframe()
        return _Site(rule.name, user.f_code.co_filename, user.f_lineno, user.f_code.co_name, self.calls[key])

    def _follow(self, node: Node, site: _Site) -> None:
        """Have the VJP of ``node`` checked, and those of the nodes that the same call has left on the way to it."""
        pending = [node]
        while pending:
            node = pending.pop()
            if isinstance(node.rule, _Watched):
                continue
            for parent in node.parents:
                if type(parent) is Node and (node.plan is SELECT or parent.rule in (CAST, BROADCAST)):
                    pending.append(parent)
            if node.plan is not SELECT:
                node.plan = copy(node.plan)
                node.plan.quick = None  # so that the walk asks the rule
            node.rule = _Watched(node.rule, site, self)


class _Watched(Rule):
    """The operation of one node, whose VJPs are checked."""

    def __init__(self, rule: Rule, site: _Site, watch: _Watch) -> None:
        self.__dict__.update(rule.__dict__)
        self.site = site
        self.watch = watch

    def pull(self, node: Node, cotangent: Any, as_tensors: bool, asked: set[tape.Parent] | None) -> list[Any]:
        self.watch.walked = True
        token = _PULLING.set(self.site)
        try:
            pulled = super().pull(node, cotangent, as_tensors, asked)
        finally:
            _PULLING.reset(token)
        _check_backward(self, node, cotangent, pulled)
        return pulled


def _check_forward(rule: Rule, operands: Sequence[Any], results: Sequence[Tensor], site: _Site) -> None:
    if all(_is_finite(result) for result in results):
        return
    given = _ranges(zip(_names(rule, len(operands)), operands, strict=True))
    outcome = _ranges(("result" if len(results) == 1 else f"result {i}", out) for i, out in enumerate(results))
    bearers = [name for name, values in given.items() if values.nans]
    if any(values.nans for values in outcome.values()):
        what = f"passed on a NaN that came in with {' and '.join(bearers)}" if bearers else "made a NaN"
    else:
        bearers = [name for name, values in given.items() if values.infinities]
        learned = [
            name
            for name, operand in zip(_names(rule, len(operands)), operands, strict=True)
            if name in bearers and isinstance(operand, Tensor) and operand.requires_grad and operand._node is None
        ]
        if bearers and not learned:
            return
        what = f"passed on an infinity that came in with {' and '.join(learned)}" if learned else "made an infinity"
    _report(f"{rule.name} {what}", rule.name, site, given | outcome, backward=False)


def _check_backward(rule: _Watched, node: Node, cotangent: Any, pulled: Sequence[Any]) -> None:
    arrived = _ranges([("cotangent", cotangent)])
    came = any(values.nans or values.infinities for values in arrived.values())
    if not came and all(_is_finite(item) for item in pulled):
        return
    kept = _ranges((rule.readable[position], value) for position, value in zip(node.plan.keeps, node.kept, strict=True))
    names = _names(rule, max(node.plan.indices) + 1)
    given = _ranges((f"gradient of {names[i]}", item) for i, item in zip(node.plan.indices, pulled, strict=True))
    blamed = arrived if came else given
    kind = "a NaN" if any(values.nans for values in blamed.values()) else "an infinity"
    what = f"was handed {kind}" if came else f"made {kind}"
    of = f" (itself part of the gradient of {rule.site.operation})" if rule.site.order else ""
    _report(f"the VJP of {rule.name}{of} {what}", rule.name, rule.site, arrived | kept | given, backward=True)


def _report(what: str, operation: str, site: _Site, ranges: dict[str, Range], backward: bool) -> None:
    text = linecache.getline(site.file, site.line).strip()
    lines = [
        f"{what}, at time step {site.step} of this call:",
        f'  File "{site.file}", line {site.line}, in {site.function}',
        *([f"    {text}"] if text else []),
        *[f"  {name}: {values}" for name, values in ranges.items()],
    ]
    error = AnomalyError("\n".join(lines))
    error.operation, error.backward, error.ranges = operation, backward, ranges
    error.file, error.line, error.text, error.step = site.file, site.line, text, site.step
    raise error


def _names(rule: Rule, count: int) -> list[str]:
    """What the operands are called, ``*operands`` by their positions."""
    if not rule.variadic:
        return list(rule.operands)
    *fixed, rest = rule.operands
    return [*fixed, *[f"{rest}[{i}]" for i in range(count - len(fixed))]]


def _host(value: Any) -> np.ndarray[Any, Any] | None:
    """The floats of a tensor, array or number on the host; None if it is something else."""
    if isinstance(value, Tensor):
        value = value._data
    if isinstance(value, (float, np.floating)):
        return np.asarray(value)
    backend = backend_of(value)
    return backend.to_numpy(value) if backend is not None and value.dtype.kind == "f" else None


def _is_finite(value: Any) -> bool:
    host = _host(value)
    return host is None or bool(np.isfinite(host).all())


def _ranges(named: Any) -> dict[str, Range]:
    """The ranges of what holds floats, lists item by item."""
    ranges: dict[str, Range] = {}
    for name, value in named:
        if isinstance(value, (list, Operands)):
            ranges |= _ranges((f"{name}[{i}]", item) for i, item in enumerate(value))
        elif (host := _host(value)) is not None:
            finite = host[np.isfinite(host)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
            nans = int(np.isnan(host).sum())
            ranges[name] = Range(host.shape, str(host.dtype), low, high, nans, int(np.isinf(host).sum()))
    return ranges
