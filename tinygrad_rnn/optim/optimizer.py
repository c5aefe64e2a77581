"""`Optimizer`: what all optimizers share, so that each of them is its update equations and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from tinygrad_rnn.backend import Array, Backend, backend_of
from tinygrad_rnn.optim.growth import Watch
from tinygrad_rnn.tensor import Tensor, _backend, _name

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]]
Group: TypeAlias = dict[str, Any]  # "params", and the options for them
State: TypeAlias = dict[str, Any]  # what is remembered about one parameter

_AT_LEAST_ZERO = ("lr", "momentum", "weight_decay", "eps", "alpha", "lr_decay", "initial_accumulator_value")


class Optimizer:
    """Base of all optimizers.

    A new optimizer says how one parameter is updated; groups, state and checks are here::

        class Lion(Optimizer):  # Chen et al. (2023), arXiv:2302.06675, Algorithm 2
            def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
                super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

            def init_state(self, F, p, group):
                return {"exp_avg": F.zeros_like(p)}

            def update(self, F, p, g, state, group):
                m, (beta1, beta2), lr = state["exp_avg"], group["betas"], group["lr"]
                p *= 1 - lr * group["weight_decay"]
                p -= lr * F.sign(beta1 * m + (1 - beta1) * g)
                m += (1 - beta2) * (g - m)

    Parameters
    ----------
    params
        Leaf tensors that require gradients, or groups: dicts with such tensors under ``"params"`` and, beside them,
        options that differ from ``defaults``.
    defaults
        The options and their values.

    Attributes
    ----------
    param_groups
        The groups, a list of dicts; an option changed there (``group["lr"] = 0.1``) holds from the next step on.
    state
        For each parameter that has been updated the dict that ``init_state`` made.

    Raises
    ------
    TypeError
        If ``params`` holds something other than tensors or dicts, or an option has the wrong type.
    ValueError
        If there are no parameters, one is given twice, is no leaf or requires no gradient, or an option is out of
        its range.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError("params must be an iterable of tensors or dicts, got a single tensor: pass [tensor]")
        if hasattr(params, "parameters"):
            kind = type(params).__name__
            raise TypeError(f"params must be an iterable of tensors or dicts, got a {kind}: pass its .parameters()")
        given: list[Any] = list(params)
        if not given:
            raise ValueError("params is empty: there is nothing to optimize")
        if not isinstance(given[0], dict):
            given = [{"params": given}]
        self.defaults = defaults
        self.param_groups: list[Group] = []
        self.state: dict[Tensor, State] = {}
        self._watch = Watch()
        for group in given:
            self.add_param_group(group)

    def init_state(self, F: Backend, p: Array, group: Group) -> State:
        """What to remember of a parameter before its first update: a dict of numbers and arrays.

        Parameters
        ----------
        F
            The array functions to compute with, under NumPy's names; see `tinygrad_rnn.backend.FUNCTIONS`.
        p
            The parameter's raw array.
        group
            The options of the parameter's group.
        """
        return {}

    def update(self, F: Backend, p: Array, g: Array, state: State, group: Group) -> None:
        """Update one parameter; every subclass defines this.

        Parameters
        ----------
        F, p, group
            As in `init_state`. ``p`` is to be written in place (``p -= ...``).
        g
            The gradient, a raw array of the shape of ``p``; not to be written.
        state
            The parameter's state, to be kept up to date.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update(self, F, p, g, state, group)")

    def check(self, group: Group) -> None:
        """Raise if an option of ``group`` makes no sense; a subclass may add checks of its own."""
        for name in _AT_LEAST_ZERO:
            if name in group:
                _check_number(name, group[name])
                if not group[name] >= 0:
                    raise ValueError(f"{name} must be at least 0, got {group[name]}")
        if "betas" in group:
            if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
                raise TypeError(f"betas must be a pair of numbers, got {group['betas']!r}")
            for i, beta in enumerate(group["betas"]):
                _check_number(f"betas[{i}]", beta)
                if not 0 <= beta < 1:
                    raise ValueError(f"betas[{i}] must be at least 0 and below 1, got {beta}")

    def add_param_group(self, param_group: Group) -> None:
        """Optimize more parameters, with options of their own.

        Parameters
        ----------
        param_group
            A dict with a tensor or an iterable of tensors under ``"params"``; options that it lacks take their
            default values.

        Raises
        ------
        TypeError, ValueError
            As for the constructor; the optimizer is then as it was.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f"a parameter group must be a dict with a key 'params', got {param_group!r}")
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError("params must have an order, got a set: a state_dict knows parameters by position")
        params = [params] if isinstance(params, Tensor) else list(params)
        position = f"of group {len(self.param_groups)}"
        seen = {p for group in self.param_groups for p in group["params"]}
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                raise TypeError(f"params[{i}] {position} must be a Tensor, got {type(p).__name__}")
            if p._node is not None:
                raise ValueError(
                    f"params[{i}] {position} must be a leaf; {_name(p)}, is the result of {p._made_by!r}: "
                    "give what it was computed from, or detach() it"
                )
            if not p.requires_grad:
                raise ValueError(f"params[{i}] {position} must require a gradient; {_name(p)}, does not")
            if p in seen:
                raise ValueError(f"params[{i}] {position} is given twice: {_name(p)}")
            seen.add(p)
        options = {name: _as_python(value) for name, value in {**self.defaults, **param_group}.items()}
        group = {**options, "params": params}
        self.check(group)
        self.param_groups.append(group)

    def zero_grad(self) -> None:
        """Set the gradient of every parameter to None."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient, in place.

        A graph recorded before that still needs the old values raises in its backward. A graph that grows from step
        to step is noticed after some steps, with a `GraphGrowthWarning` that names the tensor which holds it.

        Raises
        ------
        TypeError, ValueError
            If a gradient is on another backend than its parameter or has another shape; nothing is updated then.
        """
        due: list[tuple[Group, Tensor, Array]] = []
        for group in self.param_groups:
            for p in group["params"]:
                if (grad := p.grad) is not None:
                    g = grad._data
                    if g.shape != p._data.shape:
                        raise ValueError(f"the gradient of {_name(p)}, has shape {g.shape}")
                    if type(g) is not type(p._data):
                        raise TypeError(f"the gradient of {_name(p)}, is on {grad.backend}, not on {p.backend}")
                    due.append((group, p, g))
        for group, p, g in due:
            data = p._data
            F = _backend(p)
            state = self.state.get(p)
            if state is None:
                state = self.state[p] = self.init_state(F, data, group)
            self.update(F, data, -g if group.get("maximize") else g, state, group)
            p._touch()
        self._watch.step()

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of options and state, in PyTorch's layout.

        Returns
        -------
        ``{"state": {i: state of parameter i}, "param_groups": [options, with "params" the list of such i]}``, made of
        dicts, lists, numbers, strings, bools, None and NumPy arrays. Later steps do not change it.
        """
        number: dict[Tensor, int] = {}
        groups = []
        for group in self.param_groups:
            for p in group["params"]:
                number[p] = len(number)
            options = {name: list(value) if isinstance(value, tuple) else value for name, value in group.items()}
            groups.append({**options, "params": [number[p] for p in group["params"]]})
        state = {
            number[p]: {key: _on_host(value) for key, value in self.state[p].items()}
            for p in number
            if self.state.get(p)
        }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over options and state from a `state_dict`, one of PyTorch's included.

        Parameters belong to each other by their order. Arrays are copied, to the backend and dtype of their
        parameter.

        Raises
        ------
        ValueError
            If the numbers of groups or parameters, the shapes, the names of options or of what is remembered do not
            fit this optimizer; it is then as it was.
        """
        if not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(f"state_dict must have 'state' and 'param_groups', got {sorted(state_dict)}")
        saved_groups = state_dict["param_groups"]
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                f"state_dict has {len(saved_groups)} parameter groups, this optimizer {len(self.param_groups)}"
            )
        groups: list[Group] = []
        owners: dict[int, tuple[Tensor, Group]] = {}
        for i, (own, saved) in enumerate(zip(self.param_groups, saved_groups, strict=True)):
            if len(saved["params"]) != len(own["params"]):
                raise ValueError(
                    f"group {i} of state_dict has {len(saved['params'])} parameters, of this optimizer "
                    f"{len(own['params'])}"
                )
            if missing := sorted(self.defaults.keys() - saved.keys()):
                raise ValueError(
                    f"group {i} of state_dict lacks {', '.join(missing)}: is it the state of another optimizer "
                    f"than {type(self).__name__}?"
                )
            options = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
            group = {**own, **options, "params": own["params"]}
            self.check(group)
            groups.append(group)
            owners.update((int(key), (p, group)) for key, p in zip(saved["params"], own["params"], strict=True))
        state: dict[Tensor, State] = {}
        for key, saved in state_dict["state"].items():
            if int(key) not in owners:
                raise ValueError(f"state_dict has a state of parameter {key}, which is in none of its groups")
            p, group = owners[int(key)]
            if saved:  # PyTorch saves an empty dict where there is nothing to remember
                state[p] = self._restored(f"the state of parameter {key}", p, group, saved)
        self.param_groups, self.state = groups, state

    def _restored(self, what: str, p: Tensor, group: Group, saved: Mapping[str, Any]) -> State:
        """``saved`` in the types that ``init_state`` gives, or, where that gives nothing, like the parameter."""
        F = _backend(p)
        fresh = self.init_state(F, p._data, group)
        if missing := sorted(fresh.keys() - saved.keys()):
            raise ValueError(f"{what} lacks {', '.join(missing)}, which {type(self).__name__} needs")
        state: State = {}
        for key, value in saved.items():
            like = fresh.get(key)
            if isinstance(like, (int, float)):
                state[key] = type(like)(value)  # PyTorch counts steps in a tensor
            elif hasattr(value, "shape"):
                like = p._data if like is None else like
                if tuple(value.shape) != like.shape:
                    raise ValueError(f"{what} has {key} of shape {tuple(value.shape)}, expected {like.shape}")
                state[key] = F.asarray(np.asarray(_on_host(value)).astype(like.dtype))
            elif like is not None:
                raise ValueError(f"{what} has {key} = {value!r}, expected an array of shape {like.shape}")
            else:
                state[key] = value
        return state


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def _as_python(value: Any) -> Any:
    """NumPy's scalars as Python's: these do not widen float32 arrays, and JSON knows them."""
    return value.item() if isinstance(value, np.generic) else value


def _on_host(value: Any) -> Any:
    """Arrays and tensors as new NumPy arrays, anything else as it is."""
    if isinstance(value, Tensor):
        value = value._data
    if (backend := backend_of(value)) is not None:
        return np.array(backend.to_numpy(value))
    return np.array(value) if isinstance(value, np.generic) else value
