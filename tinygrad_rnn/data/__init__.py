"""Sequences to train on: the tasks of the literature, texts, batches of unequal lengths, and data sets in files.

All of it is NumPy on the host, time first; ``tg.Tensor(batch.xs).to(name)`` moves it to a backend.
"""

from tinygrad_rnn.data.batches import bucketed, pad
from tinygrad_rnn.data.classic import EmbeddedReber, TemporalOrder, TwoSequence, reber_strings
from tinygrad_rnn.data.sources import download, mnist, packaged, piano_rolls
from tinygrad_rnn.data.tasks import Adding, Batch, CopyMemory, DelayedEcho, Multiplication, Parity, Sine, Task
from tinygrad_rnn.data.text import Vocabulary, Windows, lanes

__all__ = [
    "Adding",
    "Batch",
    "CopyMemory",
    "DelayedEcho",
    "EmbeddedReber",
    "Multiplication",
    "Parity",
    "Sine",
    "Task",
    "TemporalOrder",
    "TwoSequence",
    "Vocabulary",
    "Windows",
    "bucketed",
    "download",
    "lanes",
    "mnist",
    "packaged",
    "pad",
    "piano_rolls",
    "reber_strings",
]
