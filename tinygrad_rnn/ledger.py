"""The gradient-through-time ledger: what each step of a sequence receives of the gradient, and what it adds."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from tinygrad_rnn import tape
from tinygrad_rnn.backend import BY_TYPE, Array
from tinygrad_rnn.compiler.run import SCAN, node_of
from tinygrad_rnn.gradients import _cotangent, _key
from tinygrad_rnn.nest import leaves
from tinygrad_rnn.random import Generator, default_generator
from tinygrad_rnn.recurrence import _observer
from tinygrad_rnn.tensor import Tensor, _backend

EXACT = 64  # states of at most so many units have their Jacobians computed row by row, others by probes
PROBES = 16


@dataclass
class Run:
    """One cell over one sequence; arrays are of shape (T,), NaN at steps that no row reached.

    Attributes
    ----------
    state
        For each part of the state the norm of the loss's gradient by it, after each step: ``|dL/dh_t|``. Of an LSTM
        that by c counts what passes through h of the same step as well; that by h leaves out c's own path.
    weights
        For each weight the norm of each step's share in its gradient. The shares themselves add up to the gradient.
    jacobian
        The Frobenius norm of ``dh_T/dh_t``, root mean square over the rows, where h is the first part of the state
        and T the last step taken; None if it was not asked for, or no gradient goes through the cell.
    saturation
        For each gate that the cell exposes and that was asked for, the fraction of its values below 0.1 or above 0.9
        (Karpathy et al. 2015, section 4.3).
    """

    state: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    jacobian: Array | None = None
    saturation: dict[str, Array] = field(default_factory=dict)

    def columns(self) -> dict[str, Array]:
        """All arrays, by what they are called in the table and the picture."""
        named = {f"|dL/d{part}|": values for part, values in self.state.items()}
        named |= {f"{name} share": values for name, values in self.weights.items()}
        if self.jacobian is not None:
            named["|dh_T/dh_t|"] = self.jacobian
        return named | {f"{gate} saturated": values for gate, values in self.saturation.items()}

    def __str__(self) -> str:
        columns = self.columns()
        lines = ["  ".join(["step".rjust(6), *[name.rjust(10) for name in columns]])]
        for t in range(len(next(iter(columns.values()), []))):
            cells = [f"{values[t]:.3g}".rjust(max(10, len(name))) for name, values in columns.items()]
            lines.append("  ".join([str(t).rjust(6), *cells]))
        return "\n".join(lines)


@dataclass
class Ledger:
    """What `gradient_ledger` found: the loss, and a `Run` for each cell and direction in the order of their calls."""

    loss: float
    runs: list[Run]

    def __str__(self) -> str:
        return "\n\n".join(f"cell {i}\n{run}" for i, run in enumerate(self.runs))


class Observer:
    """Follows the scans inside of a `gradient_ledger`.

    Attributes
    ----------
    gates
        What cells show that is wanted, if they show it.
    """

    def __init__(self, gates: Sequence[str]) -> None:
        self.gates = tuple(gates)
        self.scans: list[_Loop | _Whole] = []

    def loop(self, steps: int) -> _Loop:
        """A scan of so many steps begins; call what this returns after each step."""
        scan = _Loop(steps)
        self.scans.append(scan)
        return scan

    def whole(self, steps: int, reached: int, results: Sequence[Tensor], state: Any, found: dict[str, Tensor]) -> None:
        """A scan of so many steps was run by a compiled engine, up to the last that a row ``reached``."""
        self.scans.append(_Whole(steps, reached, node_of(results), _names(state), found))


def _names(state: Any) -> list[str]:
    """What the parts of a state are called."""
    places = [place for place, _ in leaves(state)]
    named = len(places) <= 2 and all(place in ("", "[0]", "[1]") for place in places)
    return ["h", "c"][: len(places)] if named else [f"state{place}" for place in places]


class _Loop:
    """A scan whose steps are nodes of the graph, one after the other.

    Attributes
    ----------
    taken
        The steps in the order in which they were taken.
    wanted
        Of which nodes and leaves the cotangents have to be found.
    shown
        What the cell showed at each step.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.spans: dict[int, tuple[int, int]] = {}  # the tape's clock before and after each step
        self.leaves: dict[int, dict[str, Tensor]] = {}
        self.shown: dict[int, dict[str, Array]] = {}

    def __call__(self, t: int, begun: int, state: Any, found: dict[str, Tensor]) -> None:
        """A step was taken."""
        self.spans[t] = (begun, tape.tick())
        parts = zip(_names(state), leaves(state), strict=True)
        self.leaves[t] = {name: leaf for name, (_, leaf) in parts if leaf.requires_grad}
        self.shown[t] = {name: tensor.numpy() for name, tensor in found.items()}

    @property
    def taken(self) -> list[int]:
        return list(self.spans)

    @property
    def wanted(self) -> set[tape.Parent]:
        return {_key(leaf) for parts in self.leaves.values() for leaf in parts.values()}

    def states(self, found: dict[tape.Parent, Any]) -> dict[str, dict[int, Any]]:
        """Of each part of the state its cotangent after each step."""
        cotangents: dict[str, dict[int, Any]] = {}
        for t, parts in self.leaves.items():
            for part, leaf in parts.items():
                cotangents.setdefault(part, {})[t] = found.get(_key(leaf))
        return cotangents

    def shares(self, found: dict[tape.Parent, Any], readers: list[tape.Node]) -> dict[Tensor, dict[int, Any]]:
        """Of each leaf what each step adds to its gradient; ``readers`` are all nodes that read leaves."""
        shares: dict[Tensor, dict[int, Any]] = {}
        begins = [begun for begun, _ in self.spans.values()]
        for node in reversed(readers):
            t = self.taken[bisect(begins, node.number) - 1]
            begun, ended = self.spans[t]
            if not begun < node.number < ended or node not in found:
                continue
            own = {parent for parent in node.parents if type(parent) is not tape.Node}
            for parent, pulled in zip(node.parents, node.rule.pull(node, found[node], False, own), strict=True):
                if parent in own and pulled is not None:
                    share = shares.setdefault(parent, {})
                    share[t] = share[t] + pulled if t in share else pulled
        return shares

    def head(self) -> tuple[Any, tuple[int, ...], Any]:
        """The first part of the last state: backend, shape and dtype."""
        last = next(iter(self.leaves[self.taken[-1]].values()))
        return _backend(last), last.shape, last.dtype

    def pulled(self, cotangent: Any) -> dict[int, Any]:
        """Of the first part of the state the cotangents at all steps, if the last is this."""
        heads = {t: _key(next(iter(parts.values()))) for t, parts in self.leaves.items()}
        found = tape.walk([(heads[self.taken[-1]], cotangent)], set(heads.values()), False, True)
        return {t: found.get(head) for t, head in heads.items()}


class _Whole:
    """A scan that is one node of the graph; see `_Loop`."""

    def __init__(
        self, steps: int, reached: int, node: tape.Node | None, names: list[str], found: dict[str, Tensor]
    ) -> None:
        self.steps = steps
        self.node = node
        self.names = names
        self.taken = list(range(reached))
        self.wanted: set[tape.Parent] = set() if node is None else {node}
        self.each_step: tuple[dict[int, Any], dict[int, Any]] | None = None  # found out once
        self.shown = {t: {name: tensor.numpy()[t] for name, tensor in found.items()} for t in self.taken}
        if node is not None:
            (self.kept,) = node.kept
            self.parts = [k for k, active in enumerate(self.kept.compiled.active[1]) if active]

    def states(self, found: dict[tape.Parent, Any]) -> dict[str, dict[int, Any]]:
        if self.node is None:
            return {}
        states, _ = self._each_step(found)
        return {self.names[k]: {t: states[k][t] if k in states else None for t in self.taken} for k in self.parts}

    def shares(self, found: dict[tape.Parent, Any], readers: list[tape.Node]) -> dict[Tensor, dict[int, Any]]:
        if self.node is None:
            return {}
        _, constants = self._each_step(found)
        keys = {i: _key(self.kept.consts[i]) for i in constants}
        shares: dict[Tensor, dict[int, Any]] = {leaf: {} for i in sorted(keys) for leaf in _leaves_of(keys[i])}
        for t in self.taken:
            for leaf, share in tape.walk([(keys[i], constants[i][t]) for i in keys], None, False, True).items():
                shares[leaf][t] = share
        return shares

    def _each_step(self, found: dict[tape.Parent, Any]) -> tuple[dict[int, Any], dict[int, Any]]:
        if self.each_step is None:
            self.each_step = SCAN.each_step(self.node, found[self.node]) if self.node in found else ({}, {})
        return self.each_step

    def head(self) -> tuple[Any, tuple[int, ...], Any]:
        value = self.kept.compiled.step.carry[self.parts[0]]
        return self.kept.F, value.shape, value.dtype

    def pulled(self, cotangent: Any) -> dict[int, Any]:
        step = self.kept.compiled.step
        cotangents = [None] * (len(step.ys) + len(step.carry) + len(step.totals))
        cotangents[len(step.ys) + self.parts[0]] = cotangent
        states, _ = SCAN.each_step(self.node, cotangents)
        return dict(enumerate(states[self.parts[0]]))


def _leaves_of(key: tape.Parent) -> list[Tensor]:
    """The leaves behind a node, in the order of their use."""
    parents = [parent for node in reversed(tape._reachable([key])) for parent in node.parents]
    return [parent for parent in [*parents, key] if type(parent) is not tape.Node]


def gradient_ledger(
    f: Callable[[], Tensor],
    gates: Sequence[str] = (),
    jacobian: bool = False,
    generator: Generator | None = None,
) -> Ledger:
    """Follow the gradient of a loss back through the steps of every recurrent cell that it went through.

    Parameters
    ----------
    f
        Computes the loss, a tensor of one element, by calling recurrent layers or `tinygrad_rnn.scan`. The ``grad`` of
        the weights is left as it is.
    gates
        Names of exposed values in [0, 1] whose saturation is wanted, such as ``("i", "f", "o")``. Cells that expose
        none of that name are passed over.
    jacobian
        Also measure ``|dh_T/dh_t|``: exactly up to 64 units, beyond that from 16 random probes. Not of a cell that no
        gradient goes through.
    generator
        Where the probes come from.

    Returns
    -------
    Ledger
        Print it for a table; `tinygrad_rnn.viz.plot_ledger` draws it.

    Raises
    ------
    ValueError
        If ``f`` used no recurrent cell, or its result does not depend on one.
    """
    observer = Observer(gates)
    token = _observer.set(observer)
    try:
        with tape.listen(lambda rule, operands, params, results: None):  # so that no two steps share a node
            loss = f()
    finally:
        _observer.reset(token)
    scans = observer.scans
    if not scans:
        raise ValueError("f went through no recurrent layer and no scan")
    if not loss.requires_grad:
        raise ValueError("the loss that f returned needs no gradient: did it detach, or run under no_grad?")
    nodes = tape._reachable([_key(loss)])
    readers = [node for node in nodes if any(type(parent) is not tape.Node for parent in node.parents)]
    wanted = set(readers).union(*[scan.wanted for scan in scans])
    found = tape.walk([(_key(loss), _cotangent(loss, None, "grad", False))], wanted, False, True)
    runs = [_run(scan, readers, found, gates) for scan in scans]
    if jacobian:
        for run, scan in zip(runs, scans, strict=True):
            if run.state:
                run.jacobian = _jacobian(scan, default_generator(generator))
    return Ledger(loss.item(), runs)


def _run(scan: _Loop | _Whole, readers: list[tape.Node], found: dict[tape.Parent, Any], gates: Sequence[str]) -> Run:
    run = Run()
    blank = np.full(scan.steps, np.nan)
    blank[scan.taken] = 0.0
    for part, cotangents in scan.states(found).items():
        run.state[part] = _norms(blank, cotangents)
    for number, (leaf, share) in enumerate(scan.shares(found, readers).items()):
        run.weights[getattr(leaf, "name", "") or f"leaf {number} of {leaf.shape}"] = _norms(blank, share)
    for gate in gates:
        if any(gate in shown for shown in scan.shown.values()):
            run.saturation[gate] = blank.copy()
            for t, shown in scan.shown.items():
                run.saturation[gate][t] = ((shown[gate] < 0.1) | (shown[gate] > 0.9)).mean()
    return run


def _jacobian(scan: _Loop | _Whole, generator: Generator) -> Array:
    """Root mean square over rows of the Frobenius norm of the last state's derivative by each state before it."""
    F, shape, dtype = scan.head()
    rows, units = shape[0], prod(shape[1:])
    squares = np.full(scan.steps, np.nan)
    squares[scan.taken] = 0.0
    blank = squares.copy()
    exact = units <= EXACT
    for i in range(units if exact else PROBES):
        if exact:
            probe = np.zeros((rows, units), dtype)
            probe[:, i] = 1.0
            cotangent = F.reshape(F.asarray(probe), shape)
        else:
            cotangent = F.normal(generator.next_key(), shape, dtype)
        squares += np.square(_norms(blank, scan.pulled(cotangent)))
    return np.sqrt(squares / (1 if exact else PROBES) / max(rows, 1))


def _norms(blank: Array, arrays: dict[int, Any]) -> Array:
    """The norms of arrays, each at its step; where there is none, what ``blank`` has."""
    norms = blank.copy()
    for t, array in arrays.items():
        if array is not None:
            norms[t] = np.sqrt(np.sum(np.square(BY_TYPE[type(array)].to_numpy(array), dtype=np.float64)))
    return norms
