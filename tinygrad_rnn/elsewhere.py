"""Names that other libraries have, and what to write here: hints for error messages."""

from __future__ import annotations

HERE: dict[str, dict[str, str]] = {
    "tinygrad_rnn": {
        "cat": "tg.concatenate",
        "clamp": "tg.clip",
        "from_numpy": "tg.Tensor(array)",
        "gather": "tg.take_along_axis",
        "mm": "tg.matmul",
        "permute": "tg.transpose",
        "rand": "tg.Generator(seed).uniform(shape)",
        "randn": "tg.Generator(seed).normal(shape)",
        "relu": "F.relu",
        "softmax": "F.softmax",
        "unsqueeze": "tg.expand_dims",
        "vstack": "tg.concatenate",
    },
    "tinygrad_rnn.functional": {"sigmoid": "tg.sigmoid", "tanh": "tg.tanh", "one_hot": "tg.one_hot", "pad": "tg.pad"},
    "tinygrad_rnn.nn": {
        "BCEWithLogitsLoss": "F.binary_cross_entropy_with_logits",
        "CrossEntropyLoss": "F.cross_entropy",
        "L1Loss": "F.l1_loss",
        "MSELoss": "F.mse_loss",
        "NLLLoss": "F.nll_loss",
        "ReLU": "F.relu, a function",
        "Sigmoid": "tg.sigmoid, a function",
        "Softmax": "F.softmax, a function",
        "Tanh": "tg.tanh, a function",
        "utils": "optim.clip_grad_norm_ and optim.clip_grad_value_; sequences need no packing, layers take lengths",
    },
    "tinygrad_rnn.optim": {"lr_scheduler": "optim itself, as optim.StepLR"},
    "Tensor": {
        "clamp": "tg.clip(x, min, max)",
        "clone": "tg.Tensor(x.numpy().copy()), or x itself: tensors are not written in place",
        "cpu": 'x.to("numpy")',
        "cuda": 'x.to("cupy")',
        "exp": "tg.exp(x)",
        "float": 'x.astype("float32")',
        "log": "tg.log(x)",
        "permute": "tg.transpose(x, axes)",
        "sigmoid": "tg.sigmoid(x)",
        "squeeze": "tg.squeeze(x, axis)",
        "tanh": "tg.tanh(x)",
        "transpose": "tg.transpose(x, axes), or x.T",
        "unsqueeze": "tg.expand_dims(x, axis)",
        "view": "x.reshape",
    },
}


def missing(where: str, name: str) -> AttributeError:
    """The error for a name that ``where``, a module or the class ``"Tensor"``, does not have."""
    what = "'Tensor' object" if where == "Tensor" else f"module {where!r}"
    hint = f"; here it is {HERE[where][name]}" if name in HERE[where] else ""
    return AttributeError(f"{what} has no attribute {name!r}{hint}")
