"""The optimizers: each is its update equations, in PyTorch's parametrization.

In all of them ``p`` is the parameter, ``g`` its gradient, and everything is written in place.
"""

from __future__ import annotations

from math import sqrt

from tinygrad_rnn.backend import Array, Backend
from tinygrad_rnn.optim.optimizer import Group, Optimizer, Params, State


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if asked.

    ``b = momentum * b + (1 - dampening) * g``, ``p = p - lr * b``; the first ``b`` is ``g`` itself.

    Parameters
    ----------
    params
        Tensors or groups; see `Optimizer`.
    lr
        Learning rate.
    momentum
        How much of the last update direction is kept; Polyak (1964).
    dampening
        How much less of the gradient is added to it.
    weight_decay
        Multiple of the parameter that is added to its gradient (an L2 penalty of half that weight).
    nesterov
        Look ahead along the momentum; Sutskever et al. (2013), "On the importance of initialization and momentum in
        deep learning", in the simplified form of Bengio et al. (2012), arXiv:1212.0901.
    maximize
        Ascend instead of descending.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov, "maximize": maximize})

    def check(self, group: Group) -> None:
        super().check(group)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "nesterov needs a momentum above 0 and no dampening, "
                f"got momentum {group['momentum']} and dampening {group['dampening']}"
            )

    def update(self, F: Backend, p: Array, g: Array, state: State, group: Group) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        if momentum:
            b = state.get("momentum_buffer")
            if b is None:
                b = state["momentum_buffer"] = F.zeros_like(p)
                b += g
            else:
                b *= momentum
                b += (1 - group["dampening"]) * g
            g = g + momentum * b if group["nesterov"] else b
        p -= group["lr"] * g


class Adam(Optimizer):
    """Adam: steps scaled by running means of the gradient and of its square.

    Kingma and Ba (2015), arXiv:1412.6980, Algorithm 1.

    Parameters
    ----------
    params
        Tensors or groups; see `Optimizer`.
    lr
        Learning rate.
    betas
        How much the running means of ``g`` and of ``g * g`` keep from step to step.
    eps
        Added to the root of the second mean, against division by nearly 0.
    weight_decay
        Multiple of the parameter that is added to its gradient.
    amsgrad
        Divide by the largest second mean so far; Reddi et al. (2018), arXiv:1904.09237, Algorithm 2.
    maximize
        Ascend instead of descending.
    decoupled_weight_decay
        Shrink the parameter itself by ``lr * weight_decay`` instead; see `AdamW`.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        switches = {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, {**options, **switches})

    def init_state(self, F: Backend, p: Array, group: Group) -> State:
        state = {"step": 0, "exp_avg": F.zeros_like(p), "exp_avg_sq": F.zeros_like(p)}
        return {**state, "max_exp_avg_sq": F.zeros_like(p)} if group["amsgrad"] else state

    def update(self, F: Backend, p: Array, g: Array, state: State, group: Group) -> None:
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        step = state["step"] = state["step"] + 1
        if decay and group["decoupled_weight_decay"]:
            p *= 1 - lr * decay
        elif decay:
            g = g + decay * p
        m += (1 - beta1) * (g - m)
        v *= beta2
        v += (1 - beta2) * (g * g)
        if group["amsgrad"]:
            largest = state["max_exp_avg_sq"]
            largest[...] = F.maximum(largest, v)
            v = largest
        denominator = F.sqrt(v)
        denominator /= sqrt(1 - beta2**step)
        denominator += group["eps"]
        p -= lr / (1 - beta1**step) * m / denominator


class AdamW(Adam):
    """Adam with decoupled weight decay, which the running means do not see.

    Loshchilov and Hutter (2019), arXiv:1711.05101, Algorithm 2. Parameters as for `Adam`; as in PyTorch, and unlike
    the paper, the decay is multiplied by ``lr`` itself.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, decoupled_weight_decay=True)

    def check(self, group: Group) -> None:
        super().check(group)
        if not group["decoupled_weight_decay"]:
            raise ValueError("decoupled_weight_decay must be True in AdamW, got False: is this the state of an Adam?")


class RMSprop(Optimizer):
    """RMSprop: the gradient over the root of the running mean of its square.

    Tieleman and Hinton (2012), Coursera lecture 6.5; centred as in Graves (2013), arXiv:1308.0850, eqs. 38 to 41, but
    with ``eps`` outside the root.

    Parameters
    ----------
    params
        Tensors or groups; see `Optimizer`.
    lr
        Learning rate.
    alpha
        How much the running means keep from step to step.
    eps
        Added to the root, against division by nearly 0.
    weight_decay
        Multiple of the parameter that is added to its gradient.
    momentum
        How much of the last update is kept.
    centered
        Subtract the square of the running mean gradient: divide by a standard deviation.
    maximize
        Ascend instead of descending.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**options, "centered": centered, "maximize": maximize})

    def init_state(self, F: Backend, p: Array, group: Group) -> State:
        state = {"step": 0, "square_avg": F.zeros_like(p)}
        if group["momentum"]:
            state["momentum_buffer"] = F.zeros_like(p)
        if group["centered"]:
            state["grad_avg"] = F.zeros_like(p)
        return state

    def update(self, F: Backend, p: Array, g: Array, state: State, group: Group) -> None:
        alpha = group["alpha"]
        v = state["square_avg"]
        state["step"] += 1
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        v *= alpha
        v += (1 - alpha) * (g * g)
        if group["centered"]:
            m = state["grad_avg"]
            m += (1 - alpha) * (g - m)
            v = F.maximum(v - m * m, 0)  # rounding takes a variance of nearly 0 below it
        denominator = F.sqrt(v)
        denominator += group["eps"]
        if group["momentum"]:
            b = state["momentum_buffer"]
            b *= group["momentum"]
            b += g / denominator
            p -= group["lr"] * b
        else:
            p -= group["lr"] * g / denominator


class Adagrad(Optimizer):
    """Adagrad: the gradient over the root of the sum of its squares so far.

    Duchi, Hazan and Singer (2011), JMLR 12, the diagonal version of section 1.1.

    Parameters
    ----------
    params
        Tensors or groups; see `Optimizer`.
    lr
        Learning rate.
    lr_decay
        The rate of step ``t``, counted from 0, is ``lr / (1 + t * lr_decay)``.
    weight_decay
        Multiple of the parameter that is added to its gradient.
    initial_accumulator_value
        Where the sum of squares starts.
    eps
        Added to the root, against division by nearly 0.
    maximize
        Ascend instead of descending.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay}
        switches = {"initial_accumulator_value": initial_accumulator_value, "maximize": maximize}
        super().__init__(params, {**options, **switches})

    def init_state(self, F: Backend, p: Array, group: Group) -> State:
        total = F.zeros_like(p)
        total += group["initial_accumulator_value"]
        return {"step": 0, "sum": total}

    def update(self, F: Backend, p: Array, g: Array, state: State, group: Group) -> None:
        lr = group["lr"] / (1 + state["step"] * group["lr_decay"])
        total = state["sum"]
        state["step"] += 1
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        total += g * g
        denominator = F.sqrt(total)
        denominator += group["eps"]
        p -= lr * g / denominator
