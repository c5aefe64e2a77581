"""Mistakes planted in what `scan` makes of a cell, which random cells and those of the library must notice.

They are made of the source, not picked: at every place an operator, comparison, condition, number, name or line of
generated text is exchanged for its nearest kin, or a term or statement left out. A mutant is killed if an engine then
gives other numbers than the plain loop, or none.

``python tests/compiler_mutants.py`` plants a sample, with ``--all [file ...]`` all, and prints which survive: those
that no check reaches, and those that leave programs and numbers as they were.
"""

from __future__ import annotations

import argparse
import ast
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from random import Random
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from interpreted import interpreted
from random_steps import Runner
from scan_ways import MARKS, WAYS, T, derivatives, leaf, of_cell, same, weights
from step_drawing import drawn
from test_compiler import (
    FACTS,
    MIXED,
    SQUARE,
    TERMS,
    TOTALS,
    VIEWS,
    exchanging,
    facts,
    in_shards,
    mixing,
    totalling,
    totals_of,
    viewing,
)

import tinygrad_rnn as tg
from tinygrad_rnn import nn
from tinygrad_rnn.backend import NUMPY
from tinygrad_rnn.compiler import array, derive, jit, joined, layout, loops, lower, places, program, pure, run, split

if not hasattr(signal, "setitimer"):
    raise SystemExit("mutants that never end are stopped by a signal, which this system has not")

MODULES = {module.__name__.rpartition(".")[2]: module for module in (derive, split, array, places, layout, loops)}
MODULES |= {"joined": joined, "lower": lower, "program": program, "run": run}
CELLS = 40
SAMPLE, SEED = 24, 0
SECONDS = 3  # for one check
ENGINES = ("array", "numba")

# What is exchanged for what.

OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
COMPARISONS: dict[type, tuple[type, ...]] = {
    **{ast.Eq: (ast.NotEq,), ast.Is: (ast.IsNot,), ast.In: (ast.NotIn,)},
    **{ast.NotEq: (ast.Eq,), ast.IsNot: (ast.Is,), ast.NotIn: (ast.In,)},
    **{ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.Lt)},
}
NAMES = {
    **{"SAME": "BEFORE", "BEFORE": "AFTER", "AFTER": "BEFORE", "CARRIED": "BEFORE"},
    **{"STACK": "SCRATCH", "SCRATCH": "STACK", "STREAM": "CONSTANT", "CONSTANT": "SCRATCH"},
    **{"min": "max", "max": "min", "any": "all", "all": "any", "before": "after", "after": "before"},
    **{"inputs": "results", "results": "inputs", "carry": "following", "following": "carry"},
    **{"xs": "ys", "ys": "xs", "a": "b", "b": "a"},
    **{"union": "intersection", "intersection": "union", "update": "intersection_update", "isdisjoint": "issuperset"},
}
NOT_RUN = ("annotation", "returns", "decorator_list")
CALLS = ("reversed", "sorted")  # left out
TEXTS = {  # in generated source
    " + ": (" - ",),
    " - ": (" + ",),
    " * ": (" + ",),
    "if backwards": ("if not backwards",),
    "before": ("after",),
    "after": ("before",),
    "zero_step": ("one_step",),
    "total += ": ("total = ",),
}

Change = tuple[int, str, Callable[[], None], Callable[[], None]]  # line, name, how it is made, and how it is unmade


def changes(root: ast.AST) -> Iterator[Change]:
    """All changes of a function, one at a time."""
    for node in _within(root):
        for field, child in ast.iter_fields(node):
            if field in NOT_RUN or isinstance(child, ast.arguments):
                continue
            children = child if isinstance(child, list) else [child]
            for place, old in enumerate(children):
                for name, new in kin(old):
                    line, text = old.lineno, ast.unparse(old).partition("\n")[0][:70]
                    yield line, f"{name}: {text}", *_put(node, field, child, place, old, new)
            shortened = isinstance(node, (ast.List, ast.Set, ast.BoolOp)) and field in ("elts", "values")
            if field == "ifs" or (shortened and len(children) > (2 if isinstance(node, ast.BoolOp) else 1)):
                for place, old in enumerate(children):
                    rest = [*children[:place], *children[place + 1 :]]
                    text = ast.unparse(old)[:70]
                    yield old.lineno, f"without: {text}", *_put(node, field, None, 0, child, rest)


def _within(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of documentation, of annotations and of what is raised."""
    if isinstance(node, (ast.Raise, ast.Assert)):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip, which then forgives nothing but mistakes
        return
    yield node
    for field, child in ast.iter_fields(node):
        for below in child if isinstance(child, list) else [child]:
            if field not in NOT_RUN and isinstance(below, ast.AST):
                yield from _within(below)


def _put(node: ast.AST, field: str, group: Any, place: int, old: Any, new: Any) -> tuple[Any, Any]:
    if isinstance(group, list):
        return (lambda: group.__setitem__(place, new)), (lambda: group.__setitem__(place, old))
    return (lambda: setattr(node, field, new)), (lambda: setattr(node, field, old))


def kin(node: Any) -> Iterator[tuple[str, ast.AST]]:
    """What may stand for a node."""
    match node:
        case ast.BinOp(left, operator, right) if not isinstance(left, ast.JoinedStr):
            if type(operator) in OPERATORS:
                yield "operator", ast.BinOp(left, OPERATORS[type(operator)](), right)
            yield "left alone", left
            yield "right alone", right
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield "no sign", operand
        case ast.Compare(left, [operator], [right]):
            for other in COMPARISONS[type(operator)]:
                yield other.__name__, ast.Compare(left, [other()], [right])
        case ast.BoolOp(operator, values):
            if len(values) == 2:
                yield "left alone", values[0]
                yield "right alone", values[1]
            yield "and, or", ast.BoolOp(ast.And() if isinstance(operator, ast.Or) else ast.Or(), values)
        case ast.Constant(bool() as value):
            yield "flag", ast.Constant(not value)
        case ast.Constant(int() as value):
            yield "one more", ast.Constant(value + 1)
            if value:
                yield "one less", ast.Constant(value - 1)
        case ast.Constant(str() as value):
            for word, others in TEXTS.items():
                for other in others if word in value else ():
                    yield f"text {other}", ast.Constant(value.replace(word, other, 1))
        case ast.IfExp(test, body, orelse):
            yield "other branch", ast.IfExp(test, orelse, body)
        case ast.If(test, body, orelse) if not isinstance(body[0], ast.Raise):
            yield "not", ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Slice(lower, upper, step):
            yield from [("no start", ast.Slice(None, upper, step))] * (lower is not None)
            yield from [("no end", ast.Slice(lower, None, step))] * (upper is not None)
            yield from [("no step", ast.Slice(lower, upper, None))] * (step is not None)
        case ast.Call(ast.Name(name), [argument]) if name in CALLS:
            yield "argument alone", argument
        case ast.Call(function, [first, second, *others], named):
            yield "arguments swapped", ast.Call(function, [second, first, *others], named)
        case ast.Tuple([first, second, *others], ast.Load()):
            yield "swapped", ast.Tuple([second, first, *others], ast.Load())
        case ast.List([first, second, *others], ast.Load()):
            yield "swapped", ast.List([second, first, *others], ast.Load())
        case ast.Name(name, ast.Load()) if name in NAMES:
            yield "name", ast.Name(NAMES[name], ast.Load())
        case ast.Attribute(value, name, ast.Load()) if name in NAMES:
            yield "name", ast.Attribute(value, NAMES[name], ast.Load())
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break():
            yield "nothing", ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()], _):
            yield "nothing", ast.Pass()


# Planting one.


@dataclass
class Mutant:
    """A change of one function, as the code to run in its place."""

    module: str
    line: int
    name: str
    function: FunctionType
    code: CodeType

    @property
    def label(self) -> str:
        """Its name, which other lines before it do not change."""
        return f"{self.module}.py {self.function.__qualname__}: {self.name}"

    def __str__(self) -> str:
        return f"{self.line}: {self.label}"

    @contextmanager
    def planted(self) -> Iterator[None]:
        right = self.function.__code__
        self.function.__code__ = self.code
        try:
            yield
        finally:
            self.function.__code__ = right


def _code_of(code: CodeType, qualname: str) -> CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == qualname:
                return constant
            if qualname.startswith(constant.co_qualname + ".") and (found := _code_of(constant, qualname)):
                return found
    return None


def _function(found: Any, name: str) -> FunctionType:
    found = vars(found)[name]
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, cached_property):
        found = found.func
    assert isinstance(found, FunctionType)
    return found


@cache
def mutants(name: str) -> list[Mutant]:
    """All mutants of a module."""
    module = MODULES[name]
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    made = []
    for outer in tree.body:
        if not isinstance(outer, (ast.ClassDef, ast.FunctionDef)):
            continue
        inside = outer.body if isinstance(outer, ast.ClassDef) else [outer]
        for node in [node for node in inside if isinstance(node, ast.FunctionDef) and node.name != "_no_code"]:
            owner = vars(module)[outer.name] if isinstance(outer, ast.ClassDef) else module
            function = _function(owner, node.name)
            for line, label, make, unmake in changes(node):
                make()
                try:
                    whole = ast.fix_missing_locations(ast.Module([outer], []))
                    code = _code_of(compile(whole, "<mutant>", "exec", _FUTURE), function.__qualname__)
                finally:
                    unmake()
                assert code is not None
                if code.co_freevars == function.__code__.co_freevars and _bare(code) != _bare(function.__code__):
                    made.append(Mutant(name, line, label, function, code))
    return made


_FUTURE = compile("from __future__ import annotations", "", "exec").co_flags & 0x1000000


def _bare(code: CodeType) -> tuple[Any, ...]:
    constants = tuple([_bare(c) if isinstance(c, CodeType) else (type(c), c) for c in code.co_consts])
    return code.co_code, constants, code.co_names, code.co_varnames


# Noticing one.


@dataclass
class Check:
    """Numbers by an engine, against those of the plain loop."""

    name: str
    engine: str
    numbers: Callable[[str], Any]
    compare: Callable[[Any, Any], None]
    expected: Any
    programs: Any = None
    kills: int = 0

    def run(self) -> list[Any]:
        """What programs there were, if the numbers are right."""
        run._known.clear()
        pure._known.clear()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            self.compare(self.expected, self.numbers(self.engine))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return [_traits(program) for plan in run._known.values() for program in (plan.forward, *plan.programs)]


def _traits(program: Any) -> Any:
    """The engine that a program runs on, and what it does."""
    parts = program.split
    outside = [parts.same, *[[op for op, _ in work] for work in (parts.before, parts.after)]]
    return (
        program.engine.__name__,
        program.loop.source,
        [[op.rule.name for op in ops] for ops in outside],
        len(parts.stacked),
        len(parts.streamed),
    )


@contextmanager
def checking() -> Iterator[None]:
    """What nobody wrote shows, and nothing is compiled."""
    hosts = NUMPY, jit.HOST
    right = [host.empty for host in hosts]

    def ended(*_: Any) -> None:
        raise TimeoutError

    def empty(shape: Any, dtype: Any = float) -> Any:
        return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 77, dtype)

    handler = signal.signal(signal.SIGALRM, ended)
    try:
        for host in hosts:
            host.empty = empty
        with in_shards(), interpreted(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for host, before in zip(hosts, right, strict=True):
            host.empty = before
        signal.signal(signal.SIGALRM, handler)


def batch_norm() -> Any:
    cell, xs = nn.BatchNormLSTMCell(2, 2, dtype=np.float64, generator=tg.Generator(2)), leaf(T, 3, 2)
    results = tg.scan(cell, xs, lengths=[T, 4, 2])
    return [results, cell.bn_hh.mean, cell.bn_c.var], [xs, *weights(cell)]


CHOSEN = """RNN; RNN in reverse; GRU with lengths and resets; LSTM; LSTM in reverse with lengths and resets; one unit;
one step in reverse; only half of the last state; only exposed values; the state before, twice; clipped by norm;
detached; a state that is the input; an output that is a weight; a product of weights alone;
states_that_swap_and_change; a_state_in_a_nest_some_of_it_ints_and_bools; rows_of_no_axis"""
LIBRARY = {name: WAYS[name] for name in CHOSEN.replace("\n", " ").split("; ")}
LIBRARY |= {
    "LSTM97": of_cell("LSTM97", lengths=[2, 5, 3]),
    "layer norm": of_cell("LayerNormLSTM", reset=MARKS),
    "layer norm, GRU": of_cell("LayerNormGRU", reverse=True),
    "batch norm": batch_norm,
    "segments": of_cell("LSTM", recompute=2),
    **{f"a view: {name}": partial(viewing, view) for name, view in VIEWS.items()},
    **{f"rows: {name}": partial(mixing, term) for name, term in MIXED.items()},
    **{f"square: {name}": partial(exchanging, term) for name, term in SQUARE.items()},
    **{f"a total: {name}": partial(totalling, term) for name, term in TOTALS.items()},
    "no rows": WAYS["no rows"],
    "segments in reverse": of_cell("GRU", recompute=2, reverse=True, lengths=[2, 5, 3]),
}
TWICE = "RNN", "LSTM", "GRU with lengths and resets", "states_that_swap_and_change", "segments"  # differentiated


@cache
def checks() -> list[Check]:
    """Cells of the library, and random ones that both engines can run."""
    made = []
    for name, way in LIBRARY.items():
        order = 2 if name in TWICE else 1
        right = derivatives(way, "unrolled", order)
        made += [Check(name, e, partial(derivatives, way, order=order), same_both, right) for e in ENGINES]
    made += [
        Check(f"term: {name}", by, partial(totalled, term), same_both, [totals_of(term, array)[1]])
        for name, term in TERMS.items()
        for by in ENGINES
    ]
    made += [Check("plan", by, partial(facts, kind), equal, right) for (kind, by), right in FACTS.items()]
    for check in made:
        check.programs = check.run()
    seed, most = 0, len(made) + len(ENGINES) * CELLS
    while len(made) < most:
        runner = Runner(drawn(Random(seed)))
        seed += 1

        def compare(expected: Any, found: Any, runner: Runner = runner) -> None:
            message = runner.difference(expected, found)
            assert message is None, message

        more = [Check(f"cell {seed - 1}", e, runner.run, compare, runner.run("unrolled")) for e in ENGINES]
        try:
            for check in more:
                check.programs = check.run()
        except TypeError as error:
            if "cannot run this cell" not in str(error):
                raise
        else:
            made += more
    return made


def totalled(term: Any, engine: str) -> Any:
    return [totals_of(term, {"array": array, "numba": jit}[engine])[0]]


def equal(expected: Any, found: Any) -> None:
    assert expected == found


def same_both(expected: Any, found: Any) -> None:
    same(found, expected)


def fate(mutant: Mutant) -> str:
    """Whether it is "killed", and if not, whether there was "another program" at least, or "nothing" to be seen."""
    seen = "nothing"
    both = dict.fromkeys(("split", "derive", "run"), ENGINES)
    engines = {"array": ("array",), "joined": ("array",), **both}.get(mutant.module, ("numba",))
    ordered = sorted(checks(), key=lambda check: -check.kills)
    with mutant.planted():
        for check in ordered:
            if check.engine not in engines:
                continue
            try:
                found = copy_context().run(check.run)
                left = [program[0] for program in found] != [program[0] for program in check.programs]
            except Exception:
                left = True  # or it failed
            if left:
                check.kills += 1
                return "killed"
            if found != check.programs:
                seen = "another program"
    return seen


def sample() -> list[Mutant]:
    """Always the same, unless the source changes."""
    return [mutant for name in MODULES for mutant in Random(SEED).sample(mutants(name), SAMPLE // len(MODULES))]


def fates(chosen: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
    with checking():
        for mutant in chosen:
            yield mutant, fate(mutant)
        assert all(check.run() == check.programs for check in checks()), "a mutant left something behind"


def told(counts: Counter[str]) -> str:
    return f"planted {counts.total()}, {', '.join(f'{name} {count}' for name, count in counts.items())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", nargs="*", choices=list(MODULES), metavar="module", help="plant all, or those of some")
    parser.add_argument("--part", default="1/1", help="the first of 4 parts is 1/4")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    chosen = sample() if arguments.all is None else [m for name in arguments.all or MODULES for m in mutants(name)]
    counts: Counter[str] = Counter()
    for mutant, result in fates(chosen[part - 1 :: parts]):
        counts[result] += 1
        if result != "killed":
            print(f"{result}: {mutant}", flush=True)
    print(told(counts))


if __name__ == "__main__":
    main()
