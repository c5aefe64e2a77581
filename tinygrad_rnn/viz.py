"""Showing what was computed: `draw`, the tape as a graph in which the steps of a loop are one; `plot_ledger`."""

from __future__ import annotations

import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_rnn import tape
from tinygrad_rnn.ledger import Ledger
from tinygrad_rnn.ops.declare import BROADCAST, CAST, TRANSPOSED
from tinygrad_rnn.ops.rule import Operands
from tinygrad_rnn.repeats import Loop, Ref, Search, params_of
from tinygrad_rnn.tape import SELECT, Node
from tinygrad_rnn.tensor import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shape = tuple[int, ...]


def plot_ledger(ledger: Ledger) -> Figure:
    """A figure of a `gradient_ledger`: for each cell a row, against the time step.

    Left the gradient by each part of the state and, where measured, ``|dh_T/dh_t|``; in the middle each step's share
    of the weights' gradients; right the saturation of the gates, if there is any. The first two have logarithmic
    scales, on which a gradient that vanishes or explodes is a straight line.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``figure.savefig("ledger.png")``.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_ledger needs Matplotlib: pip install 'tinygrad_rnn[examples]'") from error
    runs = ledger.runs
    saturated = any(run.saturation for run in runs)
    figure = Figure(figsize=(13 if saturated else 9, 3 * len(runs)), layout="constrained")
    rows = figure.subplots(len(runs), 3 if saturated else 2, squeeze=False)
    for i, (run, axes) in enumerate(zip(runs, rows, strict=True)):
        gradients = {f"|dL/d{part}|": values for part, values in run.state.items()}
        if run.jacobian is not None:
            gradients["|dh_T/dh_t|"] = run.jacobian
        panels = [(f"cell {i}: gradient by the state", gradients), ("share of each step", run.weights)]
        panels += [("saturated gates", run.saturation)] if saturated else []
        for axis, (title, lines) in zip(axes, panels, strict=True):
            for name, values in lines.items():
                axis.plot(np.arange(len(values)), values, label=name, marker=".", markersize=3)
            axis.set(title=title, xlabel="step")
            if lines is run.saturation:
                axis.set_ylim(0, 1)
            elif any((values > 0).any() for values in lines.values()):
                axis.set_yscale("log")
            if lines:
                axis.legend(fontsize="small")
    return figure


class Drawing:
    """A graph in Graphviz's language, shown as a picture in notebooks where the program ``dot`` is installed.

    Attributes
    ----------
    source
        The text that ``dot`` reads.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def save(self, path: str | Path) -> None:
        """Write a .dot or .gv file, or, through the program ``dot``, a .svg, .png or .pdf file.

        Raises
        ------
        ValueError
            If the name ends in something else.
        RuntimeError
            If a picture is asked for and ``dot`` is not installed, or fails.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind in (".dot", ".gv"):
            path.write_text(self.source, encoding="utf-8")
        elif kind in (".svg", ".png", ".pdf"):
            path.write_bytes(self._render(kind[1:]))
        else:
            raise ValueError(f"path must end in .dot, .gv, .svg, .png or .pdf, got {path.name!r}")

    def _render(self, kind: str) -> bytes:
        program = which("dot")
        if program is None:
            raise RuntimeError(
                f"a .{kind} file is made by the program dot, which was not found: install Graphviz "
                "(apt install graphviz, brew install graphviz, conda install graphviz, or graphviz.org/download), "
                "or save a .dot file"
            )
        done = subprocess.run([program, f"-T{kind}"], input=self.source.encode(), capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"dot failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def _repr_svg_(self) -> str | None:
        return self._render("svg").decode() if which("dot") else None

    def _repr_html_(self) -> str | None:
        return None if which("dot") else f"<pre>{escape(self.source)}</pre>"


def draw(tensor: Tensor, collapse: bool = True) -> Drawing:
    """How ``tensor`` was computed from the leaves that require a gradient; data and constants leave no trace.

    Ellipses are operations, with the shape of the result where the tape knows it; boxes are leaves. Several results
    of one operation are told apart by their number at the edge.

    Parameters
    ----------
    tensor
        The result of operations, or a leaf.
    collapse
        Show a repeated block, such as the steps of an unrolled loop, once: in a frame with the number of repeats, and
        with dashed arrows from where one repeat hands on to the next. A block repeats if the same operations follow
        each other with the same static arguments, leaves and relative places of operands. At least three repeats
        count, eight if nothing is handed on. In an edge's ``[t]`` the number changes from step to step.

    Raises
    ------
    RuntimeError
        If a backward has freed the graph.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"draw: tensor must be a Tensor, got {type(tensor).__name__}")
    if tensor._node is None:
        return Drawing("\n".join([*HEAD, f"  l0 [{_leaf(tensor)}];", "}"]))
    if tensor._node.plan is None:
        raise RuntimeError(
            "draw: the graph was freed by backward; draw it before, or pass retain_graph=True to backward"
        )
    graph = _Graph(tensor)
    loops = Search(graph.nodes, graph.refs).loops if collapse else []
    return Drawing("\n".join(_lines(graph, loops)))


HEAD = (
    "digraph tape {",
    '  graph [fontname="Helvetica", fontsize=12, labeljust=l];',
    '  node [fontname="Helvetica", fontsize=11, height=0.3, margin="0.08,0.04"];',
    '  edge [fontname="Helvetica", fontsize=9, arrowsize=0.6];',
)


class _Graph:
    """The operations behind a tensor, oldest first, without the nodes that stand for one of several results.

    Attributes
    ----------
    nodes, refs
        The operations, and what each was given.
    leaves
        All leaves.
    root
        Which operation made the tensor.
    shapes
        Of the results; None where unknown.
    results
        How many there are, for operations with several.
    """

    def __init__(self, tensor: Tensor) -> None:
        order = [n for n in reversed(tape._reachable([tensor._node])) if n.plan is not SELECT]
        # The broadcast of a bias and the like may serve every step: then they come before the first.
        uses = Counter(parent for node in order for parent in node.parents if type(parent) is Node)
        order.sort(key=lambda n: not (n.plan.lasting and type(n.parents[0]) is not Node and uses[n] > 1))
        self.nodes: list[Node] = order
        numbers = {node: i for i, node in enumerate(order)}
        leaves: dict[Tensor, int] = {}
        self.results: dict[int, int] = {}
        self.refs: list[tuple[Ref, ...]] = []
        for node in order:
            refs = []
            for operand, parent in zip(node.plan.indices, node.parents, strict=True):
                if type(parent) is not Node:
                    refs.append(Ref(operand, -1 - leaves.setdefault(parent, len(leaves)), -1))
                elif parent.plan is SELECT:
                    target = numbers[parent.parents[0]]
                    position, self.results[target] = parent.kept
                    refs.append(Ref(operand, target, position))
                else:
                    refs.append(Ref(operand, numbers[parent], -1))
            self.refs.append(tuple(refs))
        self.leaves = list(leaves)
        root: Any = tensor._node
        self.root = numbers[root.parents[0] if root.plan is SELECT else root]
        self.shapes: list[Shape | None] = [None] * len(order)
        if root.plan is not SELECT:
            self.shapes[self.root] = tensor.shape
        self._infer()

    def _infer(self) -> None:
        """Shapes: a node has none, but often keeps the result, or operands, or their shapes, of which more follow."""
        given = [_operand_shapes(node) for node in self.nodes]
        uneven = {i for i in self.results if self.nodes[i].rule.name == "split" and not _even(self.nodes[i])}
        for _ in range(2):
            for i, node in enumerate(self.nodes):
                known = dict(given[i])
                for operand, target, _ in self.refs[i]:
                    shape = self.leaves[-1 - target].shape if target < 0 else self.shapes[target]
                    if shape is not None:
                        known[operand] = shape
                if self.shapes[i] is None:
                    self.shapes[i] = _result_shape(node, known)
            for i in range(len(self.nodes) - 1, -1, -1):
                rule, own = self.nodes[i].rule, self.shapes[i]
                for operand, target, _ in self.refs[i]:
                    if target >= 0 and self.shapes[target] is None and target not in uneven:
                        same = rule.elementwise or rule.name == CAST.name
                        self.shapes[target] = own if same else given[i].get(operand)


def _even(node: Node) -> bool:
    return isinstance(params_of(node).get("sections"), int)


def _operand_shapes(node: Node) -> dict[int, Shape]:
    """The shapes of operands that ``node`` keeps, or keeps the shapes of."""
    shapes: dict[int, Shape] = {}
    operands = node.rule.operands
    for position, value in zip(node.plan.keeps, node.kept, strict=False):
        name = node.rule.readable[position]
        if name in operands and isinstance(value, Tensor):
            shapes[operands.index(name)] = value.shape
        elif name.removesuffix("_shape") in operands and name.endswith("_shape") and value is not None:
            first = operands.index(name.removesuffix("_shape"))
            if value and isinstance(value[0], tuple):  # of *operands
                shapes |= {first + i: shape for i, shape in enumerate(value)}
            else:
                shapes[first] = value
        elif isinstance(value, Operands):
            shapes |= {operands.index(name) + i: item.shape for i, item in enumerate(value)}
    return shapes


def _result_shape(node: Node, known: dict[int, Shape]) -> Shape | None:
    """The shape of the result, as far as it follows from the operands' or is kept."""
    if node.plan.out >= 0:
        return node.kept[node.plan.out].shape  # type: ignore[no-any-return]
    name = node.rule.name
    if name == BROADCAST.name:
        return node.kept[1]  # type: ignore[no-any-return]
    if node.rule.elementwise or name == CAST.name:
        return next((known[operand] for operand in node.plan.indices if operand in known), None)
    if name == TRANSPOSED.name and 0 in known:
        return known[0][::-1]
    if name == "unstack" and 0 in known:
        axis = params_of(node)["axis"] % len(known[0])
        return known[0][:axis] + known[0][axis + 1 :]
    if name == "matmul" and len(known) == 2 and min(len(known[0]), len(known[1])) > 1:
        a, b = known[0], known[1]
        return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])
    return None


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _leaf(tensor: Tensor) -> str:
    label = _quoted(f"{getattr(tensor, 'name', '') or 'tensor'}\n{tensor.shape or 'scalar'}")
    return f'label={label}, shape=box, style=filled, fillcolor="#cfe3f7"'


def _lines(graph: _Graph, loops: list[Loop]) -> Iterator[str]:
    home = np.arange(len(graph.nodes))  # for each operation the one that is drawn for it
    for loop in loops:
        home[loop.start : loop.stop] = np.tile(np.arange(loop.last, loop.stop), loop.count)
    drawn = np.flatnonzero(home == np.arange(len(home))).tolist()
    ids = {i: f"n{number}" for number, i in enumerate(drawn)}
    yield from HEAD
    inside: set[int] = set()
    for number, loop in enumerate(loops):
        yield f'  subgraph cluster_{number} {{ label="× {loop.count}"; style=rounded; color=gray;'
        for i in range(loop.last, loop.stop):
            yield f"    {ids[i]} [{_label(graph, i)}];"
        yield "  }"
        inside.update(range(loop.last, loop.stop))
    for i in drawn:
        if i not in inside:
            yield f"  {ids[i]} [{_label(graph, i)}];"

    edges: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)

    def edge(ref: Ref, to: int, label: str) -> None:
        source = ids[home[ref.target]] if ref.target >= 0 else f"l{-1 - ref.target}"
        edges[source, ids[to], ""].append(label)

    for i in drawn:
        if i not in inside:
            for ref in graph.refs[i]:
                edge(ref, i, f"[{ref.result}]" if ref.result >= 0 else "")
    for loop in loops:
        for i in range(loop.last, loop.stop):
            for ref, before in zip(graph.refs[i], graph.refs[i - loop.period], strict=True):
                result = "" if ref.result < 0 else f"[{ref.result}]" if ref.result == before.result else "[t]"
                if not loop.start <= ref.target < loop.last:
                    edge(ref, i, result)
                    continue
                back = (loop.stop - 1 - ref.target) // loop.period
                label = f"{result} × {loop.count - back}" + (f", {back} steps back" if back > 1 else "")
                edges[ids[home[ref.target]], ids[i], "style=dashed, constraint=false"].append(label.strip())
                for step in range(back):  # what the first steps are given instead
                    for entry in graph.refs[i - loop.last + loop.start + step * loop.period]:
                        if entry.operand == ref.operand:
                            edge(entry, i, "start")
    used = {source for source, _, _ in edges}
    for number, leaf in enumerate(graph.leaves):
        if f"l{number}" in used:
            yield f"  l{number} [{_leaf(leaf)}];"
    for (source, to, style), labels in edges.items():
        counts = Counter(labels)
        if len(counts) > 8:  # a sequence stacked again of its parts, say
            counts = Counter({"": len(labels)})
        for label, count in counts.items():
            label = label if count == 1 else f"{label} × {count}".strip()
            attributes = ", ".join(filter(None, (f"label={_quoted(label)}" if label else "", style)))
            yield f"  {source} -> {to}" + (f" [{attributes}];" if attributes else ";")
    yield "}"


def _label(graph: _Graph, i: int) -> str:
    shape = graph.shapes[i]
    many = f"{graph.results[i]} × " if i in graph.results else ""
    label = graph.nodes[i].rule.name + ("" if shape is None else f"\n{many}{shape or 'scalar'}")
    return f"label={_quoted(label)}" + (", peripheries=2" if i == graph.root else "")
