"""`draw`: the graph of known computations, loops shown once, and source that Graphviz can read."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from shutil import which

import numpy as np
import pytest
from helpers import leaf, on_backend
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_rnn as tg
from tinygrad_rnn import nn, tape, viz
from tinygrad_rnn.repeats import Search
from tinygrad_rnn.viz import draw

CELLS = ["RNNCell", "GRUCell", "LSTMCell"]
QUOTED = r'"((?:[^"\\]|\\.)*)"'


@dataclass
class Parsed:
    nodes: dict[str, str]  # label by id
    edges: set[tuple[str, str, str]]  # labels of both ends and of the edge, "back" added to dashed ones
    clusters: list[str]

    @property
    def operations(self):
        return [label.split("\n")[0] for name, label in self.nodes.items() if name[0] == "n"]


def parsed(drawing):
    """Read a drawing's source strictly: every line must be one of the few kinds, ids unique, braces balanced."""
    first, *lines = drawing.source.split("\n")
    assert first == "digraph tape {"
    nodes, edges, clusters, depth = {}, [], [], 1
    for line in lines:
        if line.strip() == "}":
            depth -= 1
        elif m := re.fullmatch(rf"  subgraph cluster_(\d+) {{ label={QUOTED}; style=rounded; color=gray;", line):
            assert int(m[1]) == len(clusters)
            clusters.append(m[2])
            depth += 1
        elif m := re.fullmatch(rf"  (?:  )?([nl]\d+) \[label={QUOTED}(, [^\"]*|, .*\"#cfe3f7\")?\];", line):
            assert m[1] not in nodes
            nodes[m[1]] = re.sub(r"\\(.)", lambda e: {"n": "\n"}.get(e[1], e[1]), m[2])
        elif m := re.fullmatch(rf"  ([nl]\d+) -> (n\d+)(?: \[(?:label={QUOTED})?(.*)\])?;", line):
            edges.append((m[1], m[2], m[3] or "", m[4] or ""))
        else:
            assert re.fullmatch(r"  (graph|node|edge) \[[a-z0-9=\"\., A-Z]*\];", line), line
        assert depth >= 0
    assert depth == 0
    assert len(edges) == len(set(edges))
    named = {
        (nodes[a], nodes[b], (label + (" back" if "dashed" in style else "")).strip()) for a, b, label, style in edges
    }
    return Parsed(nodes, named, clusters)


def unrolled(cell, steps, needs_grad=False, size=3):
    xs = on_backend(np.ones((steps, 2, size), np.float32))
    xs.requires_grad = needs_grad
    state, ys = None, []
    for x in tg.unstack(xs):
        y, state = cell(x, state)
        ys.append(y)
    return tg.stack(ys).sum()


def without_counts(drawing):
    return re.sub(r"unstack\\n\d+|× \d+|tensor\\n\(\d+|stack\\n\(\d+", "", drawing.source)


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_an_unrolled_cell_is_drawn_as_one_step(name, needs_grad, backend):
    cell = getattr(nn, name)(3, 2)
    twenty = draw(unrolled(cell, 20, needs_grad))
    once = parsed(draw(unrolled(cell, 1, needs_grad), collapse=False))
    graph = parsed(twenty)
    assert sorted(graph.operations) == sorted(once.operations)
    assert graph.clusters == ["× 20"]
    handed_on = [edge for edge in graph.edges if edge[2] == "× 19 back"]
    assert len(handed_on) == (1 if name == "RNNCell" else 2)
    for steps in (3, 21, 50):
        assert without_counts(draw(unrolled(cell, steps, needs_grad))) == without_counts(twenty)
    full = parsed(draw(unrolled(cell, 20, needs_grad), collapse=False))
    per_step = len(parsed(draw(unrolled(cell, 2, needs_grad), collapse=False)).operations) - len(once.operations)
    assert len(full.operations) == len(once.operations) + 19 * per_step
    assert not full.clusters


def test_the_drawing_of_an_rnn(backend):
    graph = parsed(draw(unrolled(nn.RNNCell(3, 2), 20, True)))
    w, u, b, c = (
        f"RNNCell.{name}" for name in ("weight_ih\n(2, 3)", "weight_hh\n(2, 2)", "bias_ih\n(2,)", "bias_hh\n(2,)")
    )
    add, product, tanh = "add\n(2, 2)", "matmul\n(2, 2)", "tanh\n(2, 2)"
    assert graph.edges == {
        ("tensor\n(20, 2, 3)", "unstack\n20 × (2, 3)", ""),
        (w, "transposed\n(3, 2)", ""),
        (u, "transposed\n(2, 2)", ""),
        (b, "broadcast\n(2, 2)", ""),
        (c, "broadcast\n(2, 2)", ""),
        ("unstack\n20 × (2, 3)", product, "[t]"),
        ("transposed\n(3, 2)", product, ""),
        ("transposed\n(2, 2)", product, ""),
        ("broadcast\n(2, 2)", add, ""),
        (product, add, ""),
        (add, add, ""),
        (add, tanh, ""),
        (tanh, product, "× 19 back"),
        (tanh, "stack\n(20, 2, 2)", "× 20"),
        ("stack\n(20, 2, 2)", "sum\nscalar", ""),
    }


def test_what_enters_a_loop_and_what_goes_two_steps_back(backend):
    w, start = leaf(np.eye(3)), leaf(np.ones((1, 3)))
    h = [tg.zeros((1, 3), np.float64), start * 2]
    for _ in range(9):
        h.append(tg.tanh(h[-1] @ w + h[-2]))
    graph = parsed(draw(tg.exp(h[-1])))
    assert graph.clusters == ["× 9"]
    assert graph.edges == {
        ("tensor\n(1, 3)", "multiply\n(1, 3)", ""),
        ("multiply\n(1, 3)", "matmul\n(1, 3)", "start"),
        ("multiply\n(1, 3)", "add\n(1, 3)", "start"),
        ("tensor\n(3, 3)", "matmul\n(1, 3)", ""),
        ("matmul\n(1, 3)", "add\n(1, 3)", ""),
        ("add\n(1, 3)", "tanh\n(1, 3)", ""),
        ("tanh\n(1, 3)", "matmul\n(1, 3)", "× 8 back"),
        ("tanh\n(1, 3)", "add\n(1, 3)", "× 7, 2 steps back back"),
        ("tanh\n(1, 3)", "exp\n(1, 3)", ""),
    }


def stacked_layers(steps):
    one, other, state, ys, zs = nn.LSTMCell(3, 3), nn.GRUCell(3, 3), None, [], []
    for x in tg.unstack(tg.ones((steps, 2, 3))):
        y, state = one(x, state)
        ys.append(y)
    for order in (ys, ys[::-1]):
        state = None
        for y in order:
            z, state = other(y, state)
            zs.append(z)
    return tg.stack(zs).sum()


def indexed(steps):
    w, h = leaf(np.eye(3)), tg.zeros((2, 3), np.float64)
    xs = tg.sin(leaf(np.ones((steps, 2, 3))))
    for t in range(steps):
        h = tg.tanh(xs[t] @ w + h)
    return h


def loss_in_the_loop(steps):
    cell, out, state, loss = nn.GRUCell(3, 3), nn.Linear(3, 1), None, 0.0
    for _ in range(steps):
        y, state = cell(tg.ones((2, 3)), state)
        loss = loss + tg.functional.mse_loss(out(y), tg.zeros((2, 1)))
    return loss


def losses_after_the_loop(steps):
    cell, state, losses = nn.GRUCell(3, 3), None, []
    for _ in range(steps):
        y, state = cell(tg.ones((2, 3)), state)
        losses.append(tg.mean(y))
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def gradients(steps):
    cell = nn.LSTMCell(3, 3)
    return sum((g * g).sum() for g in tg.grad(unrolled(cell, steps), cell.parameters(), create_graph=True))


def nothing_handed_on(steps):
    w = leaf(np.eye(3))
    return tg.stack([tg.tanh(y @ w) for y in tg.unstack(tg.sin(leaf(np.ones((steps, 2, 3)))))])


def a_loop_inside(steps):
    w, h = leaf(np.eye(3)), tg.zeros((2, 3), np.float64)
    for _ in range(steps):
        h = tg.sigmoid(h @ w)
        for _ in range(3):
            h = tg.tanh(h @ w)
    return h


@pytest.mark.parametrize(
    ("program", "loops"),
    [
        (stacked_layers, 3),
        (indexed, 1),
        (loss_in_the_loop, 1),
        (losses_after_the_loop, 2),
        (gradients, 2),
        (nothing_handed_on, 1),
        (a_loop_inside, 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_drawing_of_a_loop_does_not_grow_with_time(program, loops):
    sizes = {
        (len(graph.nodes), len(graph.edges), len(graph.clusters))
        for graph in (parsed(draw(program(steps))) for steps in (10, 11, 30))
    }
    assert_faithful(program(10))
    ((_, _, clusters),) = sizes
    assert clusters == loops


def assert_faithful(tensor):
    """Each step of a loop must be the last one traced back, but for what the first steps are handed from outside."""
    graph = viz._Graph(tensor)
    for loop in Search(graph.nodes, graph.refs).loops:
        for i in range(loop.start, loop.stop):
            model = loop.last + (i - loop.start) % loop.period
            steps = (model - i) // loop.period
            assert graph.nodes[i].rule is graph.nodes[model].rule
            own = {(ref.operand, ref.target, ref.result) for ref in graph.refs[i]}
            for ref, before in zip(graph.refs[model], graph.refs[model - loop.period], strict=True):
                stride, turn = ref.target - before.target, ref.result - before.result
                traced = (ref.operand, ref.target - steps * stride, ref.result - steps * turn)
                assert stride or traced[1] < loop.start
                if stride != loop.period or traced[1] >= loop.start:
                    assert traced in own
                    own.remove(traced)
            assert all(target < loop.start for _, target, _ in own)


def test_a_first_step_of_other_arguments_is_drawn_apart():
    w, h = leaf(np.eye(3)), tg.zeros((3, 3), np.float64)
    for t in range(10):
        h = tg.flip(tg.tanh(h @ w), int(t > 0))
    graph = parsed(draw(h))
    assert len(graph.clusters) == 1
    assert graph.operations.count("flip") == 2
    assert_faithful(h)


def reads_the_first_step(steps):
    w, h, first = leaf(np.eye(3)), tg.zeros((2, 3), np.float64), None
    for _ in range(steps):
        h = tg.tanh(h @ w)
        first = h if first is None else first
        h = tg.sin(h) * first
    return h


def reads_half_as_far_back(steps):
    w, h = leaf(np.eye(3)), [leaf(np.ones((2, 3)))]
    for t in range(steps):
        h.append(tg.tanh(h[-1] @ w + h[t // 2]))
    return h[-1]


def reads_all_values_of_a_loop(steps):
    w, h, z, values = leaf(0.5), tg.zeros((2,), np.float64), leaf(np.ones(2)), []
    for _ in range(steps):
        values.append(tg.sin(h * w if not values else h))
        values.append(tg.tanh(values[-1]))
        h = values[-1]
    for value in values:
        z = tg.cos(z * w) + value
    return z


def more_at_first(steps):
    w, h = leaf(0.5), leaf(np.ones(2))
    for t in range(steps):
        h = tg.tanh(h * w) + (leaf(np.ones(2)) if t == 0 else tg.ones((2,), np.float64))
    return h


def takes_turns(steps):
    w, h = leaf(0.5), leaf(np.ones(steps))
    for t in range(steps):
        h = w * tg.unstack(tg.tanh(tg.ones((steps,), np.float64) * h))[t if steps % 2 else t % 2]
    return h


@pytest.mark.parametrize("steps", [12, 13])
@pytest.mark.parametrize(
    "program",
    [reads_the_first_step, reads_half_as_far_back, reads_all_values_of_a_loop, more_at_first, takes_turns],
)
def test_what_is_no_loop_is_not_drawn_as_one(program, steps):
    result = program(steps)
    assert_faithful(result)
    full, graph = parsed(draw(result, collapse=False)), parsed(draw(result))
    # Each kind of edge must be there: a loop hides repetitions, not connections.
    kinds = {(a, b) for a, b, _ in full.edges}
    assert {(a, b) for a, b, _ in graph.edges} == kinds


@pytest.mark.parametrize("name", CELLS)
def test_a_tape_made_under_a_listener_collapses_too(name):
    with tape.listen(lambda *_: None):
        graph = parsed(draw(unrolled(getattr(nn, name)(3, 2), 20)))
    assert graph.clusters == ["× 20"]
    assert graph.operations.count("transposed") == graph.operations.count("broadcast") == 2


def test_few_equal_branches_are_drawn_side_by_side():
    w = leaf(np.eye(3))
    branches = [tg.tanh(y @ w) for y in tg.unstack(tg.sin(leaf(np.ones((4, 2, 3)))))]
    assert parsed(draw(tg.concatenate(branches))).operations.count("tanh") == 4


def test_many_results_put_together_again_are_one_arrow():
    graph = parsed(draw(tg.stack(tg.unstack(leaf(np.ones((20, 3)))))))
    assert ("unstack\n20 × (3,)", "stack\n(20, 3)", "× 20") in graph.edges
    assert len(graph.edges) == 2


UNARY, BINARY = [tg.tanh, tg.sigmoid, tg.exp], [tg.add, tg.multiply, tg.subtract]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 30), st.booleans()), min_size=2, max_size=12
    ),
    st.integers(1, 3),
)
def test_random_loops_do_not_grow_either(body, carried):
    """Each step computes new values of the weights, the state, and what it has so far; the last ones are the state."""
    weights = [tg.Tensor(np.full(2, 0.5), requires_grad=True) for _ in range(2)]

    def program(steps):
        state = [tg.Tensor(np.zeros(2)) for _ in range(carried)]
        for _ in range(steps):
            values = [*weights, *state]
            for kind, a, b, unary in body:
                x, y = values[a % len(values)], values[b % len(values)]
                values.append(UNARY[kind](x) if unary else BINARY[kind](x, y))
            state = values[-carried:]
        return tg.add(state[0], sum(state) + weights[0])

    with np.errstate(all="ignore"):
        results = [program(steps) for steps in (20, 21, 33)]
    assert len({len(parsed(draw(result)).nodes) for result in results}) == 1
    assert_faithful(results[0])


def test_without_repetition_all_is_drawn(backend):
    x, w = leaf(np.ones((2, 3))), leaf(np.ones((3, 4)))
    a, b, c, d = tg.split(tg.tanh(x @ w), 4, axis=1)
    e, f = tg.split(x, (1,), axis=1)
    result = tg.sum(tg.sigmoid(a) * b + tg.sigmoid(c) * d + e * e) + tg.sum(f)
    drawing = draw(result)
    assert drawing.source == draw(result, collapse=False).source
    graph = parsed(drawing)
    nodes = [node for node in tape._reachable([result._node]) if node.plan is not tape.SELECT]
    assert sorted(graph.operations) == sorted(node.rule.name for node in nodes)
    assert ("split\n4 × (2, 1)", "sigmoid\n(2, 1)", "[2]") in graph.edges
    assert ("split", "multiply\n(2, 1)", "[0] × 2") in {(a.split("\n")[0], b, label) for a, b, label in graph.edges}
    assert ("split", "sum\nscalar", "[1]") in {(a.split("\n")[0], b, label) for a, b, label in graph.edges}


def test_different_weights_or_arguments_are_no_repetition():
    x = tg.ones((2, 3))
    for _ in range(10):
        x = tg.tanh(x @ leaf(np.eye(3), np.float32))
    assert not parsed(draw(x)).clusters
    x = leaf(np.ones((2, 3)))
    for i in range(9):
        x = tg.flip(x, int(i in (2, 3, 5)))
    assert not parsed(draw(x)).clusters


def test_shapes_are_those_of_the_results(backend):
    shapes = {}

    def listener(rule, operands, params, results):
        for result in results:
            if result._node is not None:
                node = result._node.parents[0] if result._node.plan is tape.SELECT else result._node
                shapes.setdefault(node, []).append(result.shape)

    x, w = leaf(np.ones((2, 5, 3))), leaf(np.ones((3, 4)))
    with tape.listen(listener):
        y = tg.reshape(tg.tanh(x @ w), (10, 4))[2:, :] * leaf(np.ones(4), np.float32)
        parts = tg.split(y, (1, 3), axis=1)
        loss = tg.sum(tg.concatenate([tg.exp(part) for part in parts], axis=1), axis=0, keepdims=True) @ w.T
        z = tg.sqrt(tg.mean(loss, axis=1)) + tg.einsum("ij,jk->i", loss, w)
    graph = viz._Graph(z)
    known = 0
    for node, shape in zip(graph.nodes, graph.shapes, strict=True):
        if node in shapes and shape is not None:
            known += 1
            assert set(shapes[node]) == {shape}, node.rule
    assert known >= 10
    for name in CELLS:
        assert all("\n" in label for label in parsed(draw(unrolled(getattr(nn, name)(3, 2), 4))).nodes.values())


def test_labels_are_escaped():
    module = nn.Linear(1, 1, bias=False)
    module.weight.name = 'a "b" \\ {c} <d>\nend\\'
    graph = parsed(draw(tg.tanh(module.weight)))
    assert graph.nodes == {"n0": "tanh\n(1, 1)", "l0": module.weight.name + "\n(1, 1)"}


def test_a_result_of_several_and_a_leaf_can_be_drawn(backend):
    x = leaf([[1.0, 2.0]])
    assert parsed(draw(x)).nodes == {"l0": "tensor\n(1, 2)"}
    _, b = tg.split(x, 2, axis=1)
    assert parsed(draw(b)).operations == ["split"]
    assert "peripheries=2" in draw(b).source
    assert parsed(draw(leaf(1.0))).nodes == {"l0": "tensor\nscalar"}


def test_refusals():
    with pytest.raises(TypeError, match="tensor must be a Tensor, got list"):
        draw([1.0])
    x = leaf(1.0)
    y = tg.exp(x)
    y.backward()
    with pytest.raises(RuntimeError, match="freed by backward; draw it before"):
        draw(y)
    with pytest.raises(ValueError, match=r"must end in .* got 'picture.jpg'"):
        draw(x).save("picture.jpg")


def test_a_tape_of_a_hundred_thousand_nodes():
    w, h = leaf(0.5), leaf(0.0)
    for _ in range(25_000):
        h = tg.tanh(tg.sin(h * w) + 1.0)
    graph = parsed(draw(h))
    assert graph.clusters == ["× 25000"]
    assert len(graph.nodes) == 6


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A stand-in for ``dot`` that echoes what it was asked; a text that holds "refuse" makes it fail."""
    script = tmp_path / "bin" / "dot"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport sys\ntext = sys.stdin.buffer.read()\n"
        "if b'refuse' in text:\n    sys.exit('syntax error')\n"
        "sys.stdout.buffer.write(sys.argv[1].encode() + b'\\n' + text)\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))


def test_saving_through_dot(program, tmp_path):
    drawing = draw(tg.exp(leaf(1.0)))
    for kind in ("svg", "png", "pdf"):
        drawing.save(tmp_path / f"graph.{kind}")
        assert (tmp_path / f"graph.{kind}").read_text(encoding="utf-8") == f"-T{kind}\n{drawing.source}"
    drawing.save(str(tmp_path / "graph.gv"))
    assert (tmp_path / "graph.gv").read_text(encoding="utf-8") == drawing.source
    assert drawing._repr_svg_() == f"-Tsvg\n{drawing.source}"
    assert drawing._repr_html_() is None
    with pytest.raises(RuntimeError, match="dot failed: syntax error"):
        viz.Drawing("refuse").save(tmp_path / "graph.svg")


def test_without_dot(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    drawing = draw(tg.exp(leaf(1.0)))
    with pytest.raises(RuntimeError, match=r"a \.svg file .* \(apt install graphviz"):
        drawing.save(tmp_path / "graph.svg")
    assert not (tmp_path / "graph.svg").exists()
    drawing.save(tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text(encoding="utf-8") == drawing.source
    assert drawing._repr_svg_() is None
    assert "l0 -&gt; n0" in drawing._repr_html_()


@pytest.mark.skipif(which("dot") is None, reason="needs Graphviz")
@pytest.mark.parametrize("name", CELLS)
def test_graphviz_reads_it(name):
    drawing = draw(unrolled(getattr(nn, name)(3, 2), 20))
    assert drawing._repr_svg_().count('class="node"') == len(parsed(drawing).nodes)
