"""char-rnn, Karpathy 2015: its defaults on the plays of Shakespeare that come with it."""

from __future__ import annotations

import numpy as np

import tinygrad_rnn as tg
from examples.papers import files
from examples.papers.trials import Paper, Setting, Trial, curves
from tinygrad_rnn import data, nn, optim
from tinygrad_rnn import functional as F

STEPS, BATCH, EPOCHS = 50, 50, 50


class Characters(nn.Module):
    """Two LSTM layers of 128 units and scores of the next character; all weights begin even in +-0.08."""

    def __init__(self, characters: int, hidden: int, generator: tg.Generator) -> None:
        self.layer, self.out = nn.LSTM(characters, hidden, num_layers=2), nn.Linear(hidden, characters)
        self.characters = characters
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.08, 0.08, generator)
        for number in range(2):
            nn.init.forget_bias_(getattr(self.layer, f"bias_ih_l{number}"), 1.0)

    def loss(self, codes: np.ndarray, targets: np.ndarray, state: tuple | None) -> tuple[tg.Tensor, tuple]:
        """The mean over all characters, in nats, and the state after them."""
        ys, state = self.layer(tg.one_hot(codes, self.characters), state)
        return F.cross_entropy(self.out(ys).reshape((-1, self.characters)), tg.Tensor(targets.reshape(-1))), state


def trial(seed: int, quick: bool) -> Trial:
    """All epochs; after each the loss on the validation chunks."""
    text = files.shakespeare(quick)
    vocabulary = data.Vocabulary(text)
    batch, epochs = (4, 2) if quick else (BATCH, EPOCHS)
    codes = data.lanes(vocabulary.encode(text), batch)  # (steps, lanes)
    chunks = len(codes) // STEPS
    train = int(chunks * 0.95)
    following = np.concatenate([codes[1:], np.roll(codes[:1], -1, axis=1)])  # as char-rnn: the text is a ring
    generator = tg.Generator(seed)
    model = Characters(len(vocabulary), 8 if quick else 128, generator)
    optimizer = optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95)
    curve = []

    def chunk(number: int, state: tuple | None) -> tuple[tg.Tensor, tuple]:
        window = slice(number * STEPS, (number + 1) * STEPS)
        return model.loss(codes[window], following[window], state)

    for epoch in range(epochs):
        state, total = None, 0.0
        for number in range(train):
            loss, state = chunk(number, state)
            optimizer.zero_grad()
            loss.backward()
            optim.clip_grad_value_(model.parameters(), 5.0)
            optimizer.step()
            state = tg.detach(state)
            total += loss.item()
        if epoch + 1 >= 10:
            optimizer.param_groups[0]["lr"] *= 0.97
        state, losses = None, []
        with tg.no_grad():
            for number in range(train, chunks):
                loss, state = chunk(number, state)
                losses.append(loss.item())
        curve.append([round(total / train, 4), round(float(np.mean(losses)), 4)])
    return {"train": curve[-1][0], "valid": curve[-1][1], "best": min(one[1] for one in curve), "curve": curve}


def ours(trials: list[Trial]) -> tuple[str, ...]:
    return tuple(f"{np.mean([trial[part] for trial in trials]):.3f}" for part in ("train", "valid", "best"))


PAPERS = {
    "char-shakespeare": Paper(
        "char-rnn's defaults on its Shakespeare",
        "Karpathy 2015, github.com/karpathy/char-rnn",
        ("train, last epoch", "validation, last epoch", "validation, best epoch"),
        (Setting("2 layers of 128 units, 50 epochs", ("-", "-", "-"), 1, trial),),
        ours,
        curves(("training", "validation"), "nats a character"),
        "Cross-entropy in nats a character. There is no published table; users of char-rnn have asked for one. LSTM, "
        "RMSprop with rate 0.002 and alpha 0.95, the rate times 0.97 after each epoch from the tenth, chunks of 50 "
        "characters in 50 lanes, gradients clipped to +-5, state carried from chunk to chunk, and the last 5 % of "
        "each lane's chunks for validation. As there, that loss goes on with a state of zeros, not with the training "
        "part's.",
    )
}
