"""Drawing random recurrent cells; see random_steps.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from step_program import Leaf, Line, Program, Shape, Value, leaves_of

Bound = Callable[..., float]

ANY: dict[str, Bound] = {  # of one operand, with the bound of the result by the operand's
    "tg.tanh({0})": lambda b: min(b, 1),
    "tg.sigmoid({0})": lambda b: 1,
    "tg.sin({0})": lambda b: 1,
    "tg.cos({0})": lambda b: 1,
    "tg.erf({0})": lambda b: 1,
    "tg.exp(-tg.square({0}))": lambda b: 1,
    "tg.exp(0.3 * {0})": lambda b: math.exp(0.3 * b),
    "tg.expm1({0} * 0.3)": lambda b: math.exp(0.3 * b),
    "tg.log(1.5 + tg.square({0}))": lambda b: 1 + b,
    "tg.log1p(tg.square({0}))": lambda b: b,
    "tg.sqrt(0.5 + tg.square({0}))": lambda b: 1 + b,
    "tg.square({0})": lambda b: b * b,
    "tg.abs({0})": lambda b: b,
    "-{0}": lambda b: b,
    "1 / (1 + tg.square({0}))": lambda b: 1,
    "tg.reciprocal(1.5 + tg.abs({0}))": lambda b: 1,
    "{0} ** 2": lambda b: b**2,
    "{0} ** 3": lambda b: b**3,
    "(0.5 + tg.square({0})) ** 0.7": lambda b: 1 + b * b,
    "(0.5 + tg.square({0})) ** -0.5": lambda b: 1.5,
    "1.3 ** {0}": lambda b: 1.3**b,
    "F.relu({0})": lambda b: b,
    "F.leaky_relu({0}, 0.1)": lambda b: b,
    "F.elu({0})": lambda b: b,
    "F.gelu({0})": lambda b: b,
    'F.gelu({0}, "tanh")': lambda b: b,
    "F.silu({0})": lambda b: b,
    "F.softplus({0})": lambda b: 1 + b,
    "tg.clip({0}, -0.41, 0.73)": lambda b: 1,
    "tg.maximum({0}, 0.137)": lambda b: 1 + b,
    "tg.sign({0})": lambda b: 1,
    "tg.floor(2 * {0} + 0.37)": lambda b: 2 * b + 2,
    "1 - {0}": lambda b: 1 + b,
    "0.5 * {0} + 0.1": lambda b: 1 + b,
    "tg.zeros_like({0})": lambda b: 0,
    "tg.ones_like({0})": lambda b: 1,
    "{0} * tg.full((), 0.7, np.float64)": lambda b: b,
    "{0} + np.float64(0.3)": lambda b: 1 + b,
    "tg.where(tg.isfinite({0}) & ({0} > 0.19), {0}, 0.2)": lambda b: 1 + b,
}
GRADIENTS = (  # what changes the gradient alone
    "tg.stop_gradient({0})",
    "{0}.detach()",
    "tg.scale_gradient({0}, 0.5)",
    "tg.scale_gradient({0}, -1.0)",
    "tg.clip_gradient({0}, 1e6)",
    "tg.clip_gradient({0}, max_norm=0.3)",
    "tg.clip_gradient({0}, max_value=0.2)",
    "tg.clip_gradient({0}, max_norm=0.4, max_value=0.3)",
)
FEATURES: dict[str, Bound] = {  # along features, which keep their number n
    "F.softmax({0})": lambda b, n: 1,
    "F.log_softmax({0})": lambda b, n: 2 * b + math.log(n),
    "F.layer_norm({0}, {0}.shape[-1:], eps=0.1)": lambda b, n: math.sqrt(n),
    "F.layer_norm({0}, {0}.shape[-1:])": lambda b, n: math.sqrt(n),
    "tg.cumsum({0}, axis=-1)": lambda b, n: n * b,
    "tg.flip({0}, axis=-1)": lambda b, n: b,
    "tg.roll({0}, 1, axis=-1)": lambda b, n: b,
    "tg.take_along_axis({0}, tg.argsort({0}), -1)": lambda b, n: b,
    "tg.stack(tg.unstack({0}, axis=-1)[::-1], axis=-1)": lambda b, n: b,
    "{0}[..., ::-1]": lambda b, n: b,
    "{0} / tg.sqrt(tg.sum(tg.square({0}), axis=-1, keepdims=True) + 0.1)": lambda b, n: 1,
}
REDUCTIONS: dict[str, Bound] = {  # of n elements
    "sum": lambda b, n: n * b,
    "mean": lambda b, n: b,
    "max": lambda b, n: b,
    "min": lambda b, n: b,
    "var": lambda b, n: b * b,
    "prod": lambda b, n: b**n,
    "logsumexp": lambda b, n: b + math.log(n),
}
PAIRS: dict[str, Bound] = {
    "{0} + {1}": lambda a, b: a + b,
    "{0} - {1}": lambda a, b: a + b,
    "{0} * {1}": lambda a, b: a * b,
    "{0} / (1.5 + tg.square({1}))": lambda a, b: a,
    "(0.5 + tg.square({0})) ** tg.tanh({1})": lambda a, b: 2 + a * a,
    "tg.maximum({0}, {1} + 0.0713)": lambda a, b: 1 + max(a, b),
    "tg.minimum({0} - 0.0317, {1})": lambda a, b: 1 + max(a, b),
    "tg.where({0} < {1} + 0.0173, {0} * 0.5, {1})": lambda a, b: max(a, b),
    "({0} >= {1} + 0.0231).astype(np.float64) * {1}": lambda a, b: b,
    "{0} * tg.sigmoid({1})": lambda a, b: a,
    "{1} + tg.sigmoid({0}) * (tg.tanh({0}) - {1})": lambda a, b: 1 + 2 * b,
    "tg.where(tg.logical_not({0} > 0.0297) | ({1} < 0.5), {1}, 0.3)": lambda a, b: 1 + b,
}


def broadcast(a: Shape, b: Shape) -> Shape | None:
    """The shape of a sum of both; None if there is none."""
    n = max(len(a), len(b))
    pairs = list(zip((1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b, strict=True))
    return tuple(y if x == 1 else x for x, y in pairs) if all(x == y or 1 in (x, y) for x, y in pairs) else None


@dataclass
class _Draft:
    """A cell in the making."""

    random: Random
    mixing: bool  # whether rows may be mixed
    values: list[Value] = field(default_factory=list)
    weights: list[Leaf] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    idle: set[str] = field(default_factory=set)  # names that nothing uses yet

    def chance(self, percent: int) -> bool:
        return self.random.randrange(100) >= 100 - percent

    def some(self, fits: Callable[[Value], bool], kind: str = "f") -> Value:
        """A value that fits: rather a late one, of the rows, that nothing uses yet."""
        found = [v for v in self.values if v.kind == kind and fits(v)]
        if not found:
            raise LookupError
        for better in ([v for v in found if "B" in v.shape], [v for v in found if v.name in self.idle]):
            if better and self.chance(75):
                found = better
        return found[max(self.random.randrange(len(found)), self.random.randrange(len(found)))]

    def weight(self, *shape: Any) -> Value:
        """A new weight, or one that is in use: then it is tied."""
        known = [w.value for w in self.weights if w.value.shape == shape]
        if known and self.chance(40):
            return self.random.choice(known)
        value = Value(f"w{len(self.weights)}", shape)
        self.weights.append(Leaf(value, 9000 + 10 * len(self.weights), not self.chance(20)))
        self.values.append(value)
        return value

    def add(
        self, template: str, operands: list[Value], *shapes: Shape, bound: float, kind: str = "f", classes: int = 0
    ) -> Value:
        """A line; what might grow large is brought down."""
        if bound > 8:
            template = f"tg.tanh({template})" if self.chance(50) else f"{1 / bound:.3g} * ({template})"
            bound = 1.0
        n = sum(len(line.results) for line in self.lines)
        made = tuple(Value(f"v{n + i}", shape, bound, kind, classes) for i, shape in enumerate(shapes))
        self.lines.append(Line(template, tuple(v.name for v in operands), made, self.chance(3)))
        self.idle.difference_update(v.name for v in operands)
        self.idle.update(v.name for v in made)
        self.values += made
        return made[-1]

    def plain(self) -> None:
        a, template = self.some(lambda v: True), self.random.choice(list(ANY))
        self.add(template, [a], a.shape, bound=ANY[template](a.bound))

    def gradient(self) -> None:
        a = self.some(lambda v: len(v.shape) > 0)
        self.add(self.random.choice(GRADIENTS), [a], a.shape, bound=a.bound)

    def pair(self) -> None:
        a = self.some(lambda v: True)
        b = self.some(lambda v: broadcast(a.shape, v.shape) is not None)
        template = self.random.choice(list(PAIRS))
        self.add(template, [a, b], broadcast(a.shape, b.shape) or (), bound=PAIRS[template](a.bound, b.bound))

    def along_features(self) -> None:
        a = self.some(lambda v: v.shape[-1:] not in ((), ("B",)))
        template = self.random.choice(list(FEATURES))
        self.add(template, [a], a.shape, bound=FEATURES[template](a.bound, a.shape[-1]))

    def reduce(self) -> None:
        name = self.random.choice(list(REDUCTIONS))
        rows = self.mixing and self.chance(30)
        a = self.some(lambda v: v.shape[:1] == ("B",) if rows else v.shape[-1:] not in ((), ("B",)))
        keeps = self.chance(50)
        n, axis = (4, 0) if rows else (a.shape[-1], self.random.choice([-1, len(a.shape) - 1]))
        one = (1,) if keeps else ()
        shape = one + a.shape[1:] if rows else a.shape[:-1] + one
        template = f"tg.{name}({{0}}, axis={axis}{', keepdims=True' if keeps else ''})"
        self.add(template, [a], shape, bound=REDUCTIONS[name](a.bound, n))

    def product(self) -> None:
        a = self.some(lambda v: v.shape[-1:] not in ((), ("B",)))
        k, m = a.shape[-1], self.random.randrange(1, 5)
        forms: list[tuple[str, list[Shape], int]] = [
            ("{0} @ {1}", [(k, m)], k),
            ("{0} @ {1}.T", [(m, k)], k),
            ("F.linear({0}, {1}, {2})", [(m, k), (m,)], k + 1),
            ('tg.einsum("...i,ij->...j", {0}, {1})', [(k, m)], k),
            ("{0} @ tg.tanh({1})", [(k, m)], k),
            ("{0} @ ({1} * {2} / tg.sqrt(tg.sum({1} * {1}, axis=0, keepdims=True) + 0.1))", [(k, m), (m,)], k),
            ("{0} @ ({1} @ {2})", [(k, 2), (2, m)], 2 * k),
            ("tg.matmul({0}, {1}) + {2}", [(k, m), (m,)], k + 1),
        ]
        template, shapes, most = self.random.choice(forms)
        self.add(template, [a, *[self.weight(*s) for s in shapes]], (*a.shape[:-1], m), bound=most * a.bound)

    def attend(self) -> None:
        q = self.some(lambda v: len(v.shape) == 2 and v.shape[0] == "B" and v.shape[1] != "B")
        if self.mixing and self.chance(20):  # rows attend to each other
            self.add("F.softmax({0} @ {0}.T) @ {0}", [q], q.shape, bound=q.bound)
            return
        n = q.shape[1]
        memory = self.weight("B", 3, n)
        forms = (
            'tg.einsum("bn,bmn->bm", {0}, {1})',
            "({1} @ {0}[..., None])[..., 0]",
            "tg.sum({0}[:, None] * {1}, -1)",
        )
        scores = self.add(self.random.choice(forms), [q, memory], ("B", 3), bound=n * q.bound)
        p = self.add("F.softmax({0})", [scores], ("B", 3), bound=1)
        reads = ('tg.einsum("bm,bmn->bn", {0}, {1})', "tg.squeeze(tg.expand_dims({0}, 1) @ {1}, 1)")
        self.add(self.random.choice(reads), [p, memory], ("B", n), bound=1)

    def join(self) -> None:
        a = self.some(lambda v: v.shape[-1:] not in ((), ("B",)) and v.shape[-1] < 5)
        b = self.some(lambda v: v.shape[:-1] == a.shape[:-1] and v.shape[-1:] not in ((), ("B",)) and v.shape[-1] < 5)
        bound = max(a.bound, b.bound)
        if a.shape == b.shape and self.chance(30):
            axis = self.random.choice([1, -1])
            shape = (a.shape[0], 2, *a.shape[1:]) if axis == 1 else (*a.shape, 2)
            self.add(f"tg.stack([{{0}}, {{1}}], axis={axis})", [a, b], shape, bound=bound)
        else:
            n = a.shape[-1] + b.shape[-1]
            self.add("tg.concatenate([{0}, {1}], axis=-1)", [a, b], (*a.shape[:-1], n), bound=bound)

    def part(self) -> None:
        a = self.some(lambda v: v.shape[-1:] not in ((), ("B",)) and v.shape[-1] > 1)
        rest, n = a.shape[:-1], a.shape[-1]
        cut = self.random.randrange(1, n)
        forms: list[tuple[str, list[Shape]]] = [
            (f"tg.split({{0}}, [{cut}], axis=-1)", [(*rest, cut), (*rest, n - cut)]),
            (f"tg.split({{0}}, {n}, axis=-1)", [(*rest, 1)] * n),
            (f"{{0}}[..., {cut}:]", [(*rest, n - cut)]),
            (f"{{0}}[..., -{cut}:]", [(*rest, cut)]),
            ("{0}[..., ::2]", [(*rest, (n + 1) // 2)]),
            (f"{{0}}[..., {cut}]", [rest]),
            (f"tg.take({{0}}, [{cut}, 0, {cut}], axis=-1)", [(*rest, 3)]),
            (f"{{0}}[..., [{cut}, 0]]", [(*rest, 2)]),
            (f"tg.unstack({{0}}, axis=-1)[{cut}]", [rest]),
            ("tg.take_along_axis({0}, tg.expand_dims(tg.argmax({0}, axis=-1), -1), -1)", [(*rest, 1)]),
            (f"tg.scatter_add({{0}}, (..., {cut}), {{0}}[..., 0])", [a.shape]),
        ]
        template, shapes = self.random.choice(forms)
        self.add(template, [a], *shapes, bound=a.bound * (1 + template.startswith("tg.scatter")))

    def shape(self) -> None:
        a = self.some(lambda v: 1 < len(v.shape) < 4 and "B" not in v.shape[1:] and math.prod(v.shape[1:]) < 13)
        rest, n = a.shape[1:], math.prod(a.shape[1:])
        first = self.random.choice(["-1", "{0}.shape[0]"])
        forms: list[tuple[str, Shape]] = [
            (f"tg.reshape({{0}}, ({first}, {n}))", (a.shape[0], n)),
            (f"{{0}}.reshape({first}, {', '.join(map(str, rest[::-1]))})", (a.shape[0], *rest[::-1])),
            ("tg.expand_dims({0}, 1)", (a.shape[0], 1, *rest)),
            ("{0}[:, None]", (a.shape[0], 1, *rest)),
            ("tg.pad({0}, ((0, 0),) * ({0}.ndim - 1) + ((1, 0),))", (*a.shape[:-1], a.shape[-1] + 1)),
            ("tg.concatenate([{0}] * 2, axis=-1)", (*a.shape[:-1], 2 * a.shape[-1])),
            ("tg.tile({0}, 2)", (*a.shape[:-1], 2 * a.shape[-1])),
        ]
        if n % 2 == 0:
            forms.append((f"tg.reshape({{0}}, ({first}, 2, {n // 2}))", (a.shape[0], 2, n // 2)))
        if len(rest) == 2:
            forms.append(("tg.transpose({0}, (0, 2, 1))", (a.shape[0], *rest[::-1])))
            forms.append(("tg.swapaxes({0}, -1, -2)", (a.shape[0], *rest[::-1])))
        if len(a.shape) == 2 and (a.shape[0] != "B" or self.chance(20)):
            forms = [("{0}.T", a.shape[::-1])]
        template, shape = self.random.choice(forms)
        self.add(template, [a], shape, bound=a.bound)

    def index(self) -> None:
        """Ints, made or used."""
        if self.chance(30):
            a = self.some(lambda v: v.shape[:1] == ("B",) and len(v.shape) == 2 and v.shape[1] != "B")
            self.add("tg.argmax({0}, axis=-1)", [a], ("B",), bound=1, kind="i", classes=a.shape[1])
            return
        i = self.some(lambda v: True, "i")
        if not i.classes:
            self.add("{0} % 3", [i], i.shape, bound=1, kind="i", classes=3)
        elif self.chance(50):
            self.add(f"tg.one_hot({{0}}, {i.classes}, np.float64)", [i], (*i.shape, i.classes), bound=1)
        else:
            template = self.random.choice(["F.embedding({0}, {1})", "{1}[{0}]", "F.embedding({0}, {1}, padding_idx=0)"])
            m = self.random.randrange(1, 4)
            self.add(template, [i, self.weight(i.classes, m)], (*i.shape, m), bound=1)

    def count(self) -> None:
        i = self.some(lambda v: True, "i")
        a = self.some(lambda v: broadcast(v.shape, (*i.shape, 1)) is not None)
        forms: tuple[str, ...] = (
            "tg.where({0}[..., None] % 2 == 0, {1}, 0.3 - {1})",
            "{1} / (1 + tg.square({0}))[..., None]",
        )
        forms += ("tg.sin({0}.astype(np.float64))[..., None] * {1}", "tg.where({0}[..., None] > 1, {1}, 0.0)")
        shape = broadcast(a.shape, (*i.shape, 1)) or ()
        self.add(self.random.choice(forms), [i, a], shape, bound=1 + a.bound)

    def mask(self) -> None:
        a = self.some(lambda v: "B" in v.shape)
        forms = ("{0} * masks.keep_mask(0.7, like={0})", "F.dropout({0}, 0.3, generator=masks)")
        self.add(self.random.choice(forms), [a], a.shape, bound=1.5 * a.bound)

    def sequence_mask(self) -> None:
        a = self.some(lambda v: len(v.shape) == 2 and v.shape[0] == "B")
        self.add("{0} * kept", [a], a.shape, bound=a.bound)

    def narrow(self) -> None:
        a = self.some(lambda v: len(v.shape) > 0)
        self.add("(1.5 * {0}.astype(np.float32)).astype(np.float64)", [a], a.shape, bound=1.5 * a.bound)

    def grown(self, wanted: int, draws: bool, loose: bool) -> None:
        """Lines until there are ``wanted``."""
        makers = [self.plain] * 4 + [self.pair] * 6 + [self.product] * 5 + [self.reduce, self.part, self.index] * 2
        makers += [self.gradient, self.along_features, self.attend, self.join, self.shape, self.count]
        makers += [self.sequence_mask] * self.chance(15)
        makers += [self.mask] * draws + [self.narrow] * loose
        for _ in range(4 * wanted):
            if len(self.lines) >= wanted:
                return
            try:
                self.random.choice(makers)()
            except LookupError:
                continue  # there is nothing that it could be applied to

    def gathered(self) -> list[Value]:
        """All that nothing uses yet, summed up in each row, so that no line is in vain."""
        left = [v for v in self.values if v.name in self.idle and v.kind == "f" and v.shape[:1] == ("B",)]
        total: list[Value] = []
        for v in left:
            bound = v.bound * math.prod(4 if n == "B" else n for n in v.shape[1:]) + sum(t.bound for t in total)
            template = "tg.sum(tg.reshape({0}, ({0}.shape[0], -1)), axis=-1)" + " + {1}" * len(total)
            total = [self.add(template, [v, *total], ("B",), bound=bound)]
        return total

    def into(self, shape: Shape) -> Value:
        """A tame value of a shape that the state has, made of what there is."""
        alike = [v for v in self.values if v.kind == "f" and v.shape == shape and v.bound <= 2]
        if alike and self.chance(40):
            return self.random.choice(alike[::-1])
        if len(shape) == 2 and shape[0] == "B":
            a = self.some(lambda v: len(v.shape) == 2 and v.shape[0] == "B" and v.shape[1] != "B")
            return self.add("tg.tanh({0} @ {1})", [a, self.weight(a.shape[1], shape[1])], shape, bound=1)
        a = self.some(lambda v: broadcast(v.shape, shape) == shape and (shape != () or v.shape == ()))
        h = next(v for v in self.values if v.shape == shape)
        return self.add("tg.tanh({0} + 0.5 * {1})", [a, h], shape, bound=1)


def _nest_of(random: Random, names: list[str]) -> Any:
    if len(names) == 1 and random.randrange(2):
        return names[0]
    form = random.randrange(3)
    if form == 0:
        return tuple(names)
    if form == 1:
        return {name: name for name in names}
    return (names[0], {"rest": list(names[1:])}) if names[1:] else [names[0]]


def drawn(random: Random) -> Program:
    """A program by ``random``, which may be Hypothesis's, so that it shrinks."""

    def chance(percent: int) -> bool:
        return random.randrange(100) >= 100 - percent

    steps, batch = random.choice([3, 2, 5, 1, 4, 6, 9]), random.choice([2, 3, 1, 4])
    lengths = tuple(random.randrange(steps + 1) for _ in range(batch)) if chance(35) else None
    reset = tuple(tuple(chance(25) for _ in range(batch)) for _ in range(steps)) if chance(25) else None
    draft = _Draft(random, mixing=lengths is None and chance(40))

    def leaf(name: str, seed: int, shape: Shape, classes: int = 0) -> Leaf:
        return Leaf(Value(name, shape, 1.0, "i" if classes else "f", classes), seed, not classes and not chance(30))

    inputs = [leaf("x0", 5000, ("B", random.randrange(1, 5)))]
    inputs += [leaf("x1", 5010, random.choice([("B",), ("B", 2), ("B", 2, 3)]))] if chance(20) else []
    inputs += [leaf("n0", 5020, ("B",), 4)] if chance(20) else []
    shapes: list[Shape] = [("B", n) for n in (1, 2, 3, 4, 3, 2)] + [("B",), ("B", 2, 3)]
    shapes += [] if lengths or reset else [(3,), ()]
    sizes = [random.choice(shapes) for _ in range(random.choice([1, 2, 1, 3]))]
    states = [leaf(f"h{i}", 7000 + 10 * i, shape) for i, shape in enumerate(sizes)]
    states += [leaf("count", 7090, ("B",), 3)] if chance(20) else []
    draft.values += [part.value for part in inputs]
    for part in states:  # it begins at 1 or less, and stays below 2; the counter has no limit
        draft.values.append(Value(part.value.name, part.value.shape, 2.0, part.value.kind))
    draft.idle.update(v.name for v in draft.values)

    loose = chance(4)
    draft.grown(random.choice([5, 8, 12, 18, 26, 40]), chance(8), loose)
    following = {part.value.name: draft.into(part.value.shape).name for part in states if part.value.kind == "f"}
    if states[-1].value.name == "count":
        following["count"] = draft.add("{0} + 1", [states[-1].value], ("B",), bound=1, kind="i").name
    draft.idle.difference_update(following.values())
    fitting = [v for v in draft.values if v.shape[:1] == ("B",) or not (lengths or reset)]
    rest = [v for v in fitting if v.name in draft.idle and v.kind != "b"]
    outputs = [random.choice((rest or fitting)[::-1]).name for _ in range(random.choice([1, 2, 3, 4, 6]))]
    outputs += [random.choice(fitting).name] if chance(30) else []
    outputs += [v.name for v in draft.gathered()] if chance(70) else []
    shown = [v.name for v in fitting if v.name[0] == "v" and v.kind == "f"]
    exposed = tuple({random.choice(shown): None for _ in range(2)}) if shown and chance(20) else ()
    fresh: dict[str, str] | None = None
    if chance(20):
        parts = [part.value for part in states if part.value.kind == "f"]
        fresh = {v.name: draft.weight(*[n for n in v.shape if n != "B"]).name for v in parts}
    order = random.choice([1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 0])
    program = Program(
        steps=steps,
        batch=batch,
        weights=tuple(draft.weights),
        inputs=tuple(inputs),
        states=tuple(states),
        lines=tuple(draft.lines),
        xs=_nest_of(random, [part.value.name for part in inputs]),
        state=_nest_of(random, [part.value.name for part in states]),
        outputs=_nest_of(random, outputs),
        following=following,
        exposed=exposed,
        again=random.choice([2, steps, 4]) if chance(20) else 0,
        reverse=chance(30),
        lengths=lengths,
        reset=reset,
        fresh=fresh,
        unused=tuple(i for i in range(8) if chance(20)),
        wanted=(),
        order=order,
        loose=loose,
    )
    needing = [name for name, part, *_ in leaves_of(program) if part.needs]
    some = chance(20)
    return replace(program, wanted=tuple(name for name in needing if not some or chance(50)))
