"""The adding problem over 100 steps, learned from nothing: all from the data to the optimizer has to work."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import data, nn, optim

STEPS, HIDDEN, BATCH, UPDATES = 100, 16, 64, 800


def learn(kind: str, seed: int) -> tuple[int, float]:
    """How many updates it took, and the mean squared error on 1000 fresh sequences after them."""
    generator = tg.Generator(seed)
    task = data.Adding("le15", STEPS)
    model = nn.ModuleList(
        [getattr(nn, kind)(2, HIDDEN, generator=generator), nn.Linear(HIDDEN, 1, generator=generator)]
    )
    recurrent, readout = model
    optimizer = optim.Adam(model.parameters(), lr=0.03)

    def loss_of(size: int) -> tg.Tensor:
        batch = task.batch(size, generator)
        ys, _ = recurrent(on_backend(batch.xs))
        return task.loss(readout(ys[-1]), batch)

    losses: list[float] = []
    while len(losses) < UPDATES and not (len(losses) >= 10 and np.mean(losses[-10:]) < 0.008):
        optimizer.zero_grad()
        loss = loss_of(BATCH)
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    with tg.no_grad():
        return len(losses), loss_of(1000).item()


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_adding_over_100_steps(kind):
    updates, error = learn(kind, seed=0)
    assert updates < UPDATES
    assert error < 0.01  # to say 1 at all times gives 1/6
