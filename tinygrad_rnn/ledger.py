"""The gradient-through-time ledger: what each step of a sequence receives of the gradient, and what it adds."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn import tape
from tinygrad_rnn.backend import Array
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
        and T the last step taken; None if it was not asked for.
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


class _Recording:
    """The steps of one scan as they are taken."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.spans: dict[int, tuple[int, int]] = {}  # the tape's clock before and after each step
        self.states: dict[int, dict[str, Tensor]] = {}
        self.shown: dict[int, dict[str, Tensor]] = {}

    def __call__(self, t: int, begun: int, state: Any, found: dict[str, Tensor]) -> None:
        parts = leaves(state)
        names = "h", "c"
        named = len(parts) <= len(names) and all(place in ("", "[0]", "[1]") for place, _ in parts)
        self.spans[t] = (begun, tape.tick())
        self.states[t] = {
            names[i] if named else f"state{place}": leaf for i, (place, leaf) in enumerate(parts) if leaf.requires_grad
        }
        self.shown[t] = dict(found)


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
        Also measure ``|dh_T/dh_t|``: exactly up to 64 units, beyond that from 16 random probes.
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
    recordings: list[_Recording] = []

    def start(steps: int) -> _Recording:
        recordings.append(_Recording(steps))
        return recordings[-1]

    token = _observer.set(start)
    try:
        with tape.listen(lambda rule, operands, params, results: None):  # so that no two steps share a node
            loss = f()
    finally:
        _observer.reset(token)
    if not recordings:
        raise ValueError("f went through no recurrent layer and no scan")
    if not loss.requires_grad:
        raise ValueError("the loss that f returned needs no gradient: did it detach, or run under no_grad?")
    nodes = tape._reachable([_key(loss)])
    readers = [node for node in nodes if any(type(parent) is not tape.Node for parent in node.parents)]
    wanted = {*readers, *[_key(leaf) for r in recordings for parts in r.states.values() for leaf in parts.values()]}
    found = tape.walk([(_key(loss), _cotangent(loss, None, "grad", False))], wanted, False, True)
    runs = [_run(recording, readers, found, gates) for recording in recordings]
    if jacobian:
        for run, recording in zip(runs, recordings, strict=True):
            run.jacobian = _jacobian(recording, default_generator(generator))
    return Ledger(loss.item(), runs)


def _run(recording: _Recording, readers: list[tape.Node], found: dict[tape.Parent, Any], gates: Sequence[str]) -> Run:
    run = Run()
    blank = np.full(recording.steps, np.nan)
    for t, parts in recording.states.items():
        for part, leaf in parts.items():
            cotangent = found.get(_key(leaf))
            run.state.setdefault(part, blank.copy())[t] = 0.0 if cotangent is None else _norm(leaf, cotangent)
    shares: dict[Tensor, dict[int, Any]] = {}
    order = list(recording.spans)  # in which the steps were taken
    begins = [recording.spans[t][0] for t in order]
    for node in readers:
        t = order[bisect(begins, node.number) - 1]
        begun, ended = recording.spans[t]
        if not begun < node.number < ended or node not in found:
            continue
        own = {parent for parent in node.parents if type(parent) is not tape.Node}
        for parent, pulled in zip(node.parents, node.rule.pull(node, found[node], False, own), strict=True):
            if parent in own and pulled is not None:
                share = shares.setdefault(parent, {})
                share[t] = share[t] + pulled if t in share else pulled
    for number, (leaf, share) in enumerate(reversed(shares.items())):
        name = getattr(leaf, "name", "") or f"leaf {number} of {leaf.shape}"
        run.weights[name] = blank.copy()
        for t in recording.spans:
            run.weights[name][t] = _norm(leaf, share[t]) if t in share else 0.0
    for gate in gates:
        if any(gate in shown for shown in recording.shown.values()):
            run.saturation[gate] = blank.copy()
            for t, shown in recording.shown.items():
                values = shown[gate].numpy()
                run.saturation[gate][t] = ((values < 0.1) | (values > 0.9)).mean()
    return run


def _jacobian(recording: _Recording, generator: Generator) -> Array:
    """Root mean square over rows of the Frobenius norm of the last state's derivative by each state before it."""
    order = list(recording.states)
    heads = {t: next(iter(recording.states[t].values())) for t in order}
    last = heads[order[-1]]
    rows, units = last.shape[0], last.size // max(last.shape[0], 1)
    F = _backend(last)
    squares = np.full(recording.steps, np.nan)
    squares[order] = 0.0
    exact = units <= EXACT
    count = units if exact else PROBES
    wanted = {_key(head) for head in heads.values()}
    for i in range(count):
        if exact:
            probe = np.zeros((rows, units), last.dtype)
            probe[:, i] = 1.0
            cotangent = F.reshape(F.asarray(probe), last.shape)
        else:
            cotangent = F.normal(generator.next_key(), last.shape, last.dtype)
        found = tape.walk([(_key(last), cotangent)], wanted, False, True)
        for t, head in heads.items():
            if (pulled := found.get(_key(head))) is not None:
                squares[t] += _norm(head, pulled) ** 2 / (1 if exact else count)
    return np.sqrt(squares / max(rows, 1))


def _norm(leaf: Tensor, values: Array) -> float:
    return float(np.linalg.norm(_backend(leaf).to_numpy(values).astype(np.float64).ravel()))
