"""Calling a cell under `Watch`, and cells that hold something."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tinygrad_rnn import nn
from tinygrad_rnn.compiler.watch import Watch


def watched(cell, *arguments):
    """What one call of the cell changes, in words; the same again once it was put back, with the same result."""
    watch = Watch(cell)
    assert watch.changes() == []
    first = cell(*arguments)
    changes = watch.changes()
    watch.restore()
    assert watch.changes() == []
    second = cell(*arguments)
    assert repr(first) == repr(second)
    assert watch.changes() == changes
    watch.restore()
    return changes


def lost(cell):
    """What one call changes that cannot be put back."""
    watch = Watch(cell)
    cell()
    changes = watch.changes()
    with pytest.raises(RuntimeError, match="cannot be put back") as error:
        watch.restore()
    assert all(name in str(error.value) for name in changes)
    return changes


class Holder(nn.Module):
    """A cell that holds ``held``, and does something with it when it is called."""

    def __init__(self, held, act):
        self.held = held
        self.act = act

    def forward(self):
        return self.act(self.held)


HELD = "attribute 'held' of Holder"


@dataclass
class Record:
    value: int = 0
