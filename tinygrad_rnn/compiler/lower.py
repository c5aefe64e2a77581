"""Operations in terms of simpler ones, for engines that have no code for them.

The forward of an operation computes with a namespace; given that of tensors, while somebody listens, it says itself
what it consists of.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_rnn import ops, tape
from tinygrad_rnn.compiler.step import Op, Recorder
from tinygrad_rnn.tensor import Tensor


def lowered(op: Op) -> list[Op]:
    """The operations that ``op`` consists of, the last of which has its result; itself if it is one of a kind."""
    if op.rule.several:
        return [op]
    recorder = Recorder()
    token = tape.MODE.set(tape.Mode(False, recorder))
    try:
        operands: list[Any] = []
        for operand in op.operands:
            if isinstance(operand, (int, float)):
                operands.append(operand)
                continue
            operands.append(Tensor(np.zeros(operand.shape, operand.dtype)))
            recorder.meet(operands[-1], operand)
        with np.errstate(all="ignore"):
            op.forward(ops, *operands)
    except (AttributeError, TypeError, ValueError):  # it needs what only arrays can do
        return [op]
    finally:
        tape.MODE.reset(token)
    parts = recorder.ops
    if not parts or recorder.constants or any(part.rule is op.rule for part in parts):
        return [op]
    parts[-1].results = op.results
    return parts
