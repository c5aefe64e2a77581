"""How an operation that is declared for one step runs on all steps of a sequence at once.

What stands outside the loop of a recurrence is computed with time as a further first axis. Operands that do not
change from step to step are given without it. Each function here takes an operation, its static arguments, what stands
for the operands within a step (anything with ``shape``, ``ndim`` and ``dtype``), and which operands have time; it
returns ``run(F, steps, *arrays)``, or None where the operation cannot be run so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinygrad_rnn.ops.rule import Rule

Batched = Callable[..., Any]


def aligned(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Batched:
    """For operands that broadcast: axes of length 1 go between time and the axes of a step."""
    most = max(x.ndim for x in operands)
    gaps = [(1,) * (most - x.ndim) if has else () for x, has in zip(operands, timed, strict=True)]

    def run(F: Any, steps: int, *arrays: Any) -> Any:
        return rule.forward(F, *[_widened(x, gap) if gap else x for x, gap in zip(arrays, gaps, strict=True)], *params)

    return run


def shifted(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Batched:
    """For operands of one kind: the axes and shapes among the static arguments move up by one."""

    def run(F: Any, steps: int, *arrays: Any) -> Any:
        moved = {
            name: _moved(name, value, operands[0].ndim, steps) for name, value in zip(rule.params, params, strict=True)
        }
        if moved.get("axis", ...) is None:  # all axes of the step
            shape = operands[0].shape
            moved["axis"] = tuple(i + 1 for i, n in enumerate(shape) if rule.name != "squeeze" or n == 1)
        return rule.forward(F, *[_timed(F, x, steps, has) for x, has in zip(arrays, timed, strict=True)], **moved)

    return run


def flattened(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Batched:
    """`shifted`, where no axis stands for all elements in one row."""
    if params[0] is not None:
        return shifted(rule, params, operands, timed)
    return lambda F, steps, x: rule.forward(F, F.reshape(x, (steps, -1)), 1)


def spread(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Batched:
    """For broadcast_to: new axes go between time and the axes of a step."""
    (shape,) = params
    wanted = _tuple(shape)
    gap = (1,) * (len(wanted) - operands[0].ndim)
    return lambda F, steps, x: rule.forward(F, _widened(x, gap), (steps, *wanted))


def reversed_axes(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Batched:
    """For ``.T``: the axes of a step are reversed."""
    order = (0, *range(operands[0].ndim, 0, -1))
    return lambda F, steps, x: F.transpose(x, order)


def products(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Batched:
    """For matmul: all axes but the last two are aligned."""
    if not timed[1] and operands[1].ndim == 2:
        return lambda F, steps, a, b: rule.forward(F, a, b)
    return aligned(rule, params, operands, timed)


def lettered(rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]) -> Batched | None:
    """For einsum: time is one letter more."""
    return _with_time(rule, params, timed, kept=True)


def summed_letters(
    rule: Rule, params: tuple[Any, ...], operands: Sequence[Any], timed: Sequence[bool]
) -> Batched | None:
    """The sum over time of an einsum: a letter that is not in the result."""
    return _with_time(rule, params, timed, kept=False)


def _with_time(rule: Rule, params: tuple[Any, ...], timed: Sequence[bool], kept: bool) -> Batched | None:
    (subscripts,) = params
    spare = next((c for c in "tTzZyYxXwWvVuUsSrRqQpPoOnNmMlLkKjJiIhHgGfFeEdDcCbBaA" if c not in subscripts), None)
    if spare is None:
        return None
    inputs, result = subscripts.split("->")
    letters = [spare + part if has else part for part, has in zip(inputs.split(","), timed, strict=True)]
    longer = f"{','.join(letters)}->{spare if kept else ''}{result}"
    return lambda F, steps, *arrays: rule.forward(F, *arrays, subscripts=longer)


def _widened(x: Any, gap: tuple[int, ...]) -> Any:
    return x.reshape((x.shape[0], *gap, *x.shape[1:]))


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _timed(F: Any, x: Any, steps: int, has: bool) -> Any:
    return x if has else F.broadcast_to(x, (steps, *x.shape))


def _moved(name: str, value: Any, ndim: int, steps: int) -> Any:
    """A static argument, by its name, for operands of one axis more."""
    if name == "axis" and value is not None:
        moved = tuple(a if a < 0 else a + 1 for a in _tuple(value))
        return moved if isinstance(value, (tuple, list)) else moved[0]
    if name == "shape":
        return (steps, *_tuple(value))
    if name == "axes":
        axes = range(ndim)[::-1] if value is None else [a % ndim for a in value]
        return (0, *[a + 1 for a in axes])
    if name == "pad_width":
        return ((0, 0), *value)
    if name == "index":
        return (slice(None), *value)
    return value
