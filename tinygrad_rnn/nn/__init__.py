"""Modules: layers, recurrent cells, and what holds them."""

from tinygrad_rnn.nn import init
from tinygrad_rnn.nn.cells import Cell, GRUCell, LSTMCell, RNNCell
from tinygrad_rnn.nn.layers import Dropout, Embedding, LayerNorm, Linear, ModuleList, Sequential
from tinygrad_rnn.nn.module import Module, Parameter

__all__ = [
    "Cell",
    "Dropout",
    "Embedding",
    "GRUCell",
    "LSTMCell",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "Parameter",
    "RNNCell",
    "Sequential",
    "init",
]
