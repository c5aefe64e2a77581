"""A graph that grows over an optimizer's steps is noticed, once, and the tensor that holds it is named."""

from __future__ import annotations

import warnings
import weakref

import numpy as np
import pytest
from helpers import on_backend

import tinygrad_rnn as tg
from tinygrad_rnn import nn, optim


def make():
    layer = nn.GRU(2, 3, generator=tg.Generator(0))
    x = on_backend(np.random.default_rng(0).standard_normal((4, 2, 2)).astype(np.float32))
    return layer, x, optim.SGD(layer.parameters(), lr=0.01)


def train(layer, x, optimizer, steps, each=lambda loss: None):
    for _ in range(steps):
        optimizer.zero_grad()
        y, _ = layer(x)
        loss = (y * y).sum()
        loss.backward()
        optimizer.step()
        each(loss)


class Logger:
    def __init__(self):
        self.running_loss = on_backend(np.float32(0))

    def add(self, loss):
        self.running_loss = self.running_loss + loss


def test_a_sum_of_losses_is_named(backend):
    logger = Logger()
    with pytest.warns(optim.GraphGrowthWarning, match="over 32 steps") as caught:
        train(*make(), 200, logger.add)
    (warning,) = caught
    text = str(warning.message)
    assert "running_loss" in text
    assert "a tensor of shape () made by 'add': detach()" in text
    assert warning.filename == __file__


def test_a_local_state_is_named(backend):
    layer, x, optimizer = make()
    carried = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(40):
            optimizer.zero_grad()
            _, carried = layer(x, carried)
            # the loss does not go through the state, so no backward complains
            (layer.weight_ih_l0 * layer.weight_ih_l0).sum().backward()
            optimizer.step()
    (warning,) = caught
    assert warning.category is optim.GraphGrowthWarning
    assert "held by carried, a tensor of shape (1, 2, 3) made by 'reshape'" in str(warning.message)


def test_it_is_named_beside_a_weak_proxy_of_what_has_died():
    logger, proxy = Logger(), weakref.proxy(Logger())
    with pytest.raises(ReferenceError):
        proxy.running_loss  # noqa: B018
    with pytest.warns(optim.GraphGrowthWarning, match="running_loss"):
        train(*make(), 40, logger.add)


@pytest.mark.parametrize("keep", ["nothing", "losses", "numbers", "detached", "a graph"])
def test_nothing_is_said_of_what_does_not_grow(keep, backend):
    layer, x, optimizer = make()
    kept = []
    held = layer(x) if keep == "a graph" else None
    each = {
        "losses": kept.append,
        "numbers": lambda loss: kept.append(loss.item()),
        "detached": lambda loss: kept.append(loss.detach()),
    }.get(keep, lambda loss: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(layer, x, optimizer, 150, each)
    assert keep != "a graph" or held is not None
