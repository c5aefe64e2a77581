"""Modules: layers, recurrent cells, and what holds them."""

from tinygrad_rnn.nn import init
from tinygrad_rnn.nn.cells import Cell, GRUCell, LSTMCell, RNNCell
from tinygrad_rnn.nn.layers import Dropout, Embedding, LayerNorm, Linear, ModuleList, Sequential
from tinygrad_rnn.nn.module import Module, Parameter
from tinygrad_rnn.nn.recurrent import GRU, LSTM, RNN, LearnedState, Recurrent

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Cell",
    "Dropout",
    "Embedding",
    "GRUCell",
    "LSTMCell",
    "LayerNorm",
    "LearnedState",
    "Linear",
    "Module",
    "ModuleList",
    "Parameter",
    "RNNCell",
    "Recurrent",
    "Sequential",
    "init",
]
