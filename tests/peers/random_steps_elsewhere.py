"""Random recurrent cells by the scans of PyTorch and JAX, held against the plain loop: does anything differ there?

``python tests/peers/random_steps_elsewhere.py --by tg torch jax --cells 300`` counts. The cells are those of
``tests/random_steps.py``, as far as they use only what all three libraries have: no lengths, resets, exposed values,
masks of our generators, nor operations that change a gradient on purpose. The very text of each program is run, with
another library under the names ``tg`` and ``F``; its outputs, last states and first gradients are compared.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_steps import Runner
from step_drawing import drawn
from step_program import Program, leaves_of, text_of

from tinygrad_rnn.nest import leaves

OURS_ALONE = re.compile(r"masks|kept|(clip|scale)_gradient|padding_idx")
Found = dict[str, Any]


def fits(program: Program) -> bool:
    """Whether it uses only what all three libraries have."""
    plain = program.lengths is None and program.reset is None and not program.exposed
    return plain and not any(OURS_ALONE.search(line.template) for line in program.lines)


def corpus(seed: int) -> Iterator[tuple[int, Program]]:
    for number in count(seed):
        program = replace(drawn(Random(number)), order=1)
        if fits(program):
            yield number, program


def array_of(seed: int, shape: tuple[int, ...], classes: int = 0) -> Any:
    """The numbers that a leaf of a program has."""
    random = np.random.default_rng(seed)
    return random.integers(classes, size=shape) if classes else random.uniform(-1, 1, shape)


class Torch:
    """PyTorch under our names."""

    def __init__(self) -> None:
        import torch
        from torch._higher_order_ops.scan import scan
        from torch.utils._pytree import tree_map

        self.torch, self.scan, self.tree_map = torch, scan, tree_map
        t, nn = torch, torch.nn.functional

        def reduced(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda x, axis, keepdims=False: function(x, dim=axis, keepdim=keepdims)

        def pad(x: Any, widths: Any) -> Any:
            return nn.pad(x, [n for pair in reversed(widths) for n in pair])

        def split(x: Any, sections: Any, axis: int) -> Any:
            return t.tensor_split(x, sections, dim=axis)

        def scatter_add(x: Any, index: Any, values: Any) -> Any:
            added = t.zeros_like(x)
            added[index] = values
            return x + added

        same = "tanh sigmoid sin cos erf exp square expm1 log log1p sqrt abs reciprocal sign floor zeros_like ones_like"
        same += " where isfinite logical_not einsum matmul"
        self.tg = SimpleNamespace(
            **{name: getattr(t, name) for name in same.split()},
            **{name: reduced(getattr(t, name)) for name in ("sum", "mean", "prod", "logsumexp")},
            max=reduced(t.amax),
            min=reduced(t.amin),
            var=lambda x, axis, keepdims=False: t.var(x, dim=axis, correction=0, keepdim=keepdims),
            clip=t.clamp,
            tile=lambda x, n: t.tile(x, (n,)),
            maximum=lambda a, b: t.maximum(a, b if isinstance(b, t.Tensor) else t.full_like(a, b)),
            minimum=t.minimum,
            full=lambda shape, value, dtype: t.full(shape, value, dtype=t.float64),
            zeros=lambda shape, dtype: t.zeros(shape, dtype=getattr(t, dtype.__name__)),
            stop_gradient=lambda x: x.detach(),
            cumsum=lambda x, axis: t.cumsum(x, axis),
            flip=lambda x, axis: t.flip(x, (axis,)),
            roll=lambda x, shift, axis: t.roll(x, shift, axis),
            take_along_axis=lambda x, i, axis: t.take_along_dim(x, i, axis),
            argsort=lambda x: t.argsort(x, dim=-1, stable=True),
            argmax=lambda x, axis: t.argmax(x, dim=axis),
            one_hot=lambda i, n, dtype: nn.one_hot(i, n).to(t.float64),
            stack=lambda parts, axis: t.stack(list(parts), axis),
            unstack=lambda x, axis: t.unbind(x, axis),
            concatenate=lambda parts, axis: t.cat(list(parts), axis),
            split=split,
            take=lambda x, i, axis: t.index_select(x, axis, t.tensor(i)),
            expand_dims=lambda x, axis: t.unsqueeze(x, axis),
            squeeze=lambda x, axis: t.squeeze(x, axis),
            reshape=t.reshape,
            transpose=t.permute,
            swapaxes=t.swapaxes,
            pad=pad,
            scatter_add=scatter_add,
            no_grad=t.no_grad,
            scan=self._scan,
        )
        self.F = SimpleNamespace(
            **{
                name: getattr(nn, name)
                for name in ("relu", "leaky_relu", "elu", "silu", "softplus", "embedding", "linear")
            },
            gelu=lambda x, approximate="none": nn.gelu(x, approximate=approximate),
            softmax=lambda x: t.softmax(x, -1),
            log_softmax=lambda x: t.log_softmax(x, -1),
            layer_norm=lambda x, shape, eps=1e-5: nn.layer_norm(x, shape, eps=eps),
        )

    def text(self, text: str) -> str:
        text = re.sub(r"\.astype\(np\.(\w+)\)", r".to(\1)", text)
        return re.sub(r"(\w+)\[\.\.\., ::-1\]", r"tg.flip(\1, axis=-1)", text)

    @property
    def names(self) -> dict[str, Any]:
        return {"float32": self.torch.float32, "float64": self.torch.float64}

    def _scan(self, cell: Any, xs: Any, state: Any, reverse: bool = False, engine: str = "") -> Any:
        if state is None:
            state = cell.init_state(leaves(xs)[0][1].shape[1])

        def step(before: Any, x: Any) -> Any:
            y, after = cell(x, before)
            return self.tree_map(self.torch.clone, (after, y))  # it refuses results that are what it was given

        last, ys = self.scan(step, state, xs, reverse=reverse)
        return ys, last

    def run(self, program: Program, results: Callable[..., Any], names: dict[str, Any], order: list[str]) -> Found:
        t = self.torch
        t._dynamo.reset()
        made = {
            name: t.tensor(array_of(seed, shape, leaf.value.classes)).requires_grad_(leaf.needs)
            for name, leaf, seed, shape in leaves_of(program)
        }
        given = iter(made.values())
        names["leaf"] = lambda *_: next(given)
        wanted = {name: tensor for name, tensor in made.items() if name in program.wanted}

        def derivatives(found: Found, unused: Any, *_: Any) -> Found:
            found = {name: found[name] for name in order}  # a library may have sorted a dict
            values = {name: tensor.detach().numpy() for name, tensor in found.items()}
            parts = [part for i, part in enumerate(found.values()) if part.is_floating_point() and i not in unused]
            loss = sum(
                (p * t.tensor(array_of(i, tuple(p.shape)))).sum() + 0.5 * (p * p).sum() for i, p in enumerate(parts)
            )
            values |= {f"d {name}": np.zeros(tuple(tensor.shape)) for name, tensor in wanted.items()}
            if parts and wanted and loss.requires_grad:
                slopes = t.autograd.grad(loss, list(wanted.values()), allow_unused=True)
                values |= {f"d {name}": g.numpy() for name, g in zip(wanted, slopes, strict=True) if g is not None}
            return values

        names["derivatives"] = derivatives
        return results("")


class Jax:
    """JAX under our names."""

    def __init__(self) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax = jax
        j, nn, lax = jax.numpy, jax.nn, jax.lax
        same = (
            "tanh sin cos exp square expm1 log log1p sqrt abs reciprocal sign floor zeros_like ones_like where isfinite"
        )
        same += " logical_not einsum matmul tile sum mean prod max min var clip maximum minimum cumsum flip roll"
        same += (
            " take_along_axis argsort argmax stack concatenate split expand_dims squeeze reshape transpose swapaxes pad"
        )
        self.tg = SimpleNamespace(
            **{name: getattr(j, name) for name in same.split()},
            sigmoid=nn.sigmoid,
            erf=jax.scipy.special.erf,
            logsumexp=jax.scipy.special.logsumexp,
            full=j.full,
            zeros=lambda shape, dtype: j.zeros(shape, dtype),
            stop_gradient=lax.stop_gradient,
            one_hot=lambda i, n, dtype: nn.one_hot(i, n, dtype=dtype),
            unstack=lambda x, axis: j.unstack(x, axis=axis),
            take=lambda x, i, axis: j.take(x, j.asarray(i), axis=axis),
            scatter_add=lambda x, index, values: x.at[index].add(values),
            scan=self._scan,
        )
        self.F = SimpleNamespace(
            **{name: getattr(nn, name) for name in ["relu", "elu", "silu", "softplus"]},
            leaky_relu=nn.leaky_relu,
            gelu=lambda x, approximate="none": nn.gelu(x, approximate=approximate == "tanh"),
            softmax=lambda x: nn.softmax(x, -1),
            log_softmax=lambda x: nn.log_softmax(x, -1),
            layer_norm=lambda x, shape, eps=1e-5: (
                (x - x.mean(-1, keepdims=True)) / j.sqrt(x.var(-1, keepdims=True) + eps)
            ),
            linear=lambda x, w, b: x @ w.T + b,
            embedding=lambda i, w: w[i],
        )

    def text(self, text: str) -> str:
        text = re.sub(r"(\w+)\.detach\(\)", r"tg.stop_gradient(\1)", text)
        text = re.sub(r"(\w+)\[\.\.\., (\[\d+, \d+\])\]", r"\1[..., np.array(\2)]", text)
        # Nothing passes through what is computed under no_grad.
        return re.sub(r"with tg\.no_grad\(\):\n( +)([\w, ]+) = (.*)", r"if True:\n\1\2 = tg.stop(\3)", text)

    @property
    def names(self) -> dict[str, Any]:
        stop = lambda made: self.jax.tree.map(self.jax.lax.stop_gradient, made)  # noqa: E731
        self.tg.stop = stop
        return {}

    def _scan(self, cell: Any, xs: Any, state: Any, reverse: bool = False, engine: str = "") -> Any:
        if state is None:
            state = cell.init_state(leaves(xs)[0][1].shape[1])
        last, ys = self.jax.lax.scan(lambda before, x: cell(x, before)[::-1], state, xs, reverse=reverse)
        return ys, last

    def run(self, program: Program, results: Callable[..., Any], names: dict[str, Any], order: list[str]) -> Found:
        j = self.jax.numpy
        made = {name: array_of(seed, shape, leaf.value.classes) for name, leaf, seed, shape in leaves_of(program)}

        def loss_of(wanted: Found) -> tuple[Any, Found]:
            given = iter([wanted.get(name, array) for name, array in made.items()])
            names["leaf"] = lambda *_: j.asarray(next(given))

            def derivatives(found: Found, unused: Any, *_: Any) -> tuple[Any, Found]:
                found = {name: found[name] for name in order}  # JAX sorts dicts
                parts = [p for i, p in enumerate(found.values()) if p.dtype.kind == "f" and i not in unused]
                loss = sum((p * array_of(i, p.shape)).sum() + 0.5 * (p * p).sum() for i, p in enumerate(parts))
                return j.asarray(loss, float), found

            names["derivatives"] = derivatives
            return results("")

        wanted = {name: made[name] for name in program.wanted}
        slopes, found = self.jax.grad(loss_of, has_aux=True)(wanted)
        values = {name: np.asarray(array) for name, array in found.items()}
        return values | {f"d {name}": np.asarray(g) for name, g in slopes.items()}


def reason(message: str) -> str:
    """What an error says, without what is another in each program."""
    told = re.search(r"got (\w+Error\(.*)|(\w+ aliasing detected)|(\w+Error <.*)", message)
    return re.sub(r"\d+", "N", told[0] if told else message.strip().split("\n")[0])[:150]


def outcome(program: Program, library: Any) -> tuple[str, str]:
    """What came of it by a library, or (None) by ours: same, differs or raises; and how."""
    runner = Runner(program)
    expected = runner.run("unrolled")
    order = [*expected][: [*expected].index("loss")]
    expected.pop("loss")
    try:
        found = runner.run("array") if library is None else run_elsewhere(program, library, order)
    except Exception as error:
        return "raises", f"{type(error).__name__}: {reason(str(error))}"
    message = runner.difference({name: array for name, array in expected.items() if name in found}, found)
    return ("same", "") if message is None else ("differs", message[:300])


def run_elsewhere(program: Program, library: Any, order: list[str]) -> Found:
    """The values and gradients of a program by another library."""
    text = text_of(program, "")
    text = text[text.index("def results(") : text.index("\n\ndef difference")]
    names: dict[str, Any] = {"np": np, "tg": library.tg, "F": library.F, "leaves": leaves, **library.names}
    library.tg.Generator = lambda seed: None
    exec(compile(library.text(text), "<random step>", "exec"), names)
    found: Found = library.run(program, names["results"], names, order)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", nargs="+", choices=("tg", "torch", "jax"), default=["tg", "torch"])
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    from tqdm import tqdm

    warnings.simplefilter("ignore")
    libraries: dict[str, Callable[[], Any]] = {"tg": lambda: None, "torch": Torch, "jax": Jax}
    for name in arguments.by:
        library = libraries[name]()
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        bar = tqdm(zip(range(arguments.cells), corpus(arguments.seed), strict=False), total=arguments.cells, desc=name)
        for _, (number, program) in bar:
            kind, how = outcome(program, library)
            counts[kind] += 1
            if kind != "same":
                reasons[f"{kind}: {how}" + f" (cell {number})" * (kind == "differs")] += 1
            bar.set_postfix(counts, refresh=False)
        print(name, dict(counts))
        for reason, number in reasons.most_common(20):
            print(f"{number:6} {reason}")


if __name__ == "__main__":
    main()
