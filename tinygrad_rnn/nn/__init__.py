"""Modules: layers, recurrent cells, and what holds them."""

from typing import TYPE_CHECKING, Any

from tinygrad_rnn.nn import init
from tinygrad_rnn.nn.cells import Cell, GRUCell, LSTMCell, RNNCell
from tinygrad_rnn.nn.gated import ChoGRUCell, LSTM97Cell, MGUCell, MinGRUCell, NoForgetLSTMCell, PeepholeLSTMCell
from tinygrad_rnn.nn.layers import Dropout, Embedding, LayerNorm, Linear, ModuleList, Sequential
from tinygrad_rnn.nn.module import Module, Parameter
from tinygrad_rnn.nn.normalized import BatchNormLSTMCell, LayerNormGRUCell, LayerNormLSTMCell
from tinygrad_rnn.nn.recurrent import GRU, LSTM, RNN, Recurrent
from tinygrad_rnn.nn.simple import IndRNNCell, IRNNCell, PReLU
from tinygrad_rnn.nn.wrappers import DropConnect, LearnedState, RecurrentDropout, Residual, Zoneout

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BatchNormLSTMCell",
    "Cell",
    "ChoGRUCell",
    "DropConnect",
    "Dropout",
    "Embedding",
    "GRUCell",
    "IRNNCell",
    "IndRNNCell",
    "LSTM97Cell",
    "LSTMCell",
    "LayerNorm",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LearnedState",
    "Linear",
    "MGUCell",
    "MinGRUCell",
    "Module",
    "ModuleList",
    "NoForgetLSTMCell",
    "PReLU",
    "Parameter",
    "PeepholeLSTMCell",
    "RNNCell",
    "Recurrent",
    "RecurrentDropout",
    "Residual",
    "Sequential",
    "Zoneout",
    "init",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from tinygrad_rnn.elsewhere import missing

        raise missing(__name__, name)
