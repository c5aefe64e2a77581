"""The gradient of a weight: a sum over all its uses and over the rows of each, many rows multiplied at a time.

A weight that is used at every step of a sequence gets from each step a product of two thin matrices, and a product of
thick ones takes less time than all of those and their sum. So what the steps contribute waits, in pairs of matrices,
until it is enough.
"""

from __future__ import annotations

from typing import Any

ROWS = 1024  # as many may wait


class OuterSum:
    """A sum of outer products of the rows of two matrices, which is not multiplied yet.

    Parameters
    ----------
    F
        The backend of the matrices.
    a, b
        With as many rows; the sum has the columns of ``a`` as rows and those of ``b`` as columns.
    """

    __slots__ = ("F", "pairs", "rows", "total")

    def __init__(self, F: Any, a: Any, b: Any) -> None:
        self.F = F
        self.pairs = [(a, b)]
        self.rows = len(a)
        self.total: Any = None  # of what was multiplied

    def __add__(self, other: Any) -> Any:
        """The sum with an array, or with another such sum, into which this is put."""
        if type(other) is not OuterSum:
            return self.value() + other
        if other.rows + self.rows > ROWS:
            other._multiply()
        other.pairs += self.pairs
        other.rows += self.rows
        return other

    def value(self) -> Any:
        """The sum as an array."""
        self._multiply()
        return self.total.T

    def _multiply(self) -> None:
        """Multiply what waits.

        As its own transpose: a weight is mostly used as w.T, whose gradient then lies in memory as w does.
        """
        F = self.F
        a, b = (
            self.pairs[0] if len(self.pairs) == 1 else [F.concatenate(side) for side in zip(*self.pairs, strict=True)]
        )
        product = F.matmul(b.T, a)
        if self.total is None:
            self.total = product
        else:
            self.total += product
        self.pairs, self.rows = [], 0


def multiplied(value: Any) -> Any:
    """``value``, as an array where it is an `OuterSum`."""
    return value.value() if type(value) is OuterSum else value
