"""`Module`: parameters with names, and the trees that they form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from tinygrad_rnn import backend as backends
from tinygrad_rnn.tensor import Tensor, TensorLike


class Parameter(Tensor):
    """A tensor that a module learns; ``name`` is what error messages call it."""

    __slots__ = ("name",)
    name: str

    def __init__(self, data: TensorLike, requires_grad: bool = True, dtype: Any = None) -> None:
        super().__init__(data, requires_grad, dtype)
        self.name = ""
        if isinstance(data, Tensor) and self._base is data:  # the memory is the parameter's now, so errors name it
            self._base, data._base = None, self

    def __repr__(self) -> str:
        return f"parameter({self._describe()})"


class Module:
    """Base of everything that has parameters.

    A subclass assigns `Parameter` and `Module` attributes in its ``__init__``, in the order in which they are to
    be listed, and defines ``forward``. No call of ``super().__init__()`` is needed.
    """

    training: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter) and not value.name:
            value.name = f"{type(self).__name__}.{name}"
        elif isinstance(value, Module):
            for path, parameter in value.named_parameters():
                parameter.name = f"{type(self).__name__}.{name}.{path}"
        elif type(value) in (list, dict):
            held = value.values() if type(value) is dict else value
            if any(isinstance(part, Module) for part in held):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a {type(value).__name__} of modules, whose parameters would not "
                    "be listed here: make it an nn.ModuleList, or a tuple if they are not its own"
                )
        object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; every subclass has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def register_buffer(self, name: str, tensor: Tensor) -> None:
        """Make ``tensor`` an attribute that is saved and moved with the parameters, but not learned."""
        self.__dict__.setdefault("_buffers", {})[name] = None
        setattr(self, name, tensor)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Modules that are attributes of this one."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module, under ``prefix``, and all below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Parameters of this module and all below it; one that several share is listed once."""
        seen: set[int] = set()
        for name, tensor in self._named_tensors():
            if isinstance(tensor, Parameter) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers of this module and all below it."""
        for name, tensor in self._named_tensors():
            if not isinstance(tensor, Parameter):
                yield name, tensor

    def parameters(self) -> Iterator[Parameter]:
        """`named_parameters` without the names."""
        for _, parameter in self.named_parameters():
            yield parameter

    def buffers(self) -> Iterator[Tensor]:
        """`named_buffers` without the names."""
        for _, buffer in self.named_buffers():
            yield buffer

    def modules(self) -> Iterator[Module]:
        """`named_modules` without the names."""
        for _, module in self.named_modules():
            yield module

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for path, module in self.named_modules():
            buffers = vars(module).get("_buffers", {})
            for name, value in vars(module).items():
                if isinstance(value, Parameter) or (name in buffers and value is not None):
                    yield f"{path}.{name}" if path else name, value

    def train(self, mode: bool = True) -> Self:
        """Set ``training`` here and below: dropout and its like act only then."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """``train(False)``."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let all parameters here and below be learned, or not."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, backend: str | None = None, dtype: Any = None) -> Self:
        """Move parameters, gradients and buffers to another backend, another floating-point dtype, or both."""
        if dtype is not None and np.dtype(dtype).kind != "f":
            raise TypeError(f"dtype must be a floating-point dtype, got {np.dtype(dtype)}")
        if backend is not None:
            backends.get_backend(backend)
        for _, tensor in self._named_tensors():
            kept = dtype if tensor.dtype.kind == "f" else None
            tensor.data = tensor.detach().to(backend, kept).data
            if tensor.grad is not None:
                tensor.grad = tensor.grad.detach().to(backend, kept)
        return self

    def apply(self, function: Callable[[Module], None]) -> Self:
        """Call ``function`` on every module, those below first."""
        for _, child in self.named_children():
            child.apply(function)
        function(self)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers by name; they share memory with the module's."""
        return {name: tensor.detach() for name, tensor in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Copy values into the parameters and buffers.

        Parameters
        ----------
        state
            From names to tensors, arrays, or anything NumPy can make an array of, such as PyTorch's tensors.
        strict
            Whether every name must occur on both sides.

        Returns
        -------
        The missing and the unexpected names; both empty if ``strict``.

        Raises
        ------
        ValueError
            If names or shapes do not fit: it lists all of them, and the module is as it was.
        TypeError
            If a value is no array of numbers; the module is as it was.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict of arrays by their names, got {type(state).__name__}")
        own = dict(self._named_tensors())
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        values: dict[str, Any] = {}
        mismatched: list[str] = []
        for name, tensor in own.items():
            if name in state:
                try:
                    value = _as_tensor(state[name])
                except (TypeError, ValueError, RuntimeError) as error:
                    raise TypeError(f"the state's {name!r} is no array of numbers: {error}") from error
                # A copy: the values may be views of this module's own, which are about to be written.
                values[name] = Tensor(value.to(tensor.backend, tensor.dtype).data.copy())
                if value.shape != tensor.shape:
                    mismatched.append(f"{name}: expected {tensor.shape}, got {value.shape}")
        problems = [f"mismatched shapes: {'; '.join(mismatched)}"] if mismatched else []
        if strict and missing:
            problems.append(f"missing: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected: {', '.join(unexpected)}")
        if problems:
            raise ValueError(
                f"the state does not fit {type(self).__name__}, which is unchanged. " + ". ".join(problems)
            )
        for name, value in values.items():
            tensor = own[name]
            tensor._data[...] = value.data
            tensor._touch()
        return missing, unexpected

    def extra_repr(self) -> str:
        """What to show of this module between its parentheses."""
        return ""

    def __repr__(self) -> str:
        count = sum(parameter.size for parameter in self.parameters())
        head = f"{type(self).__name__}({self.extra_repr()})"
        lines = [f"{head}  # {count:,} parameters" if count else head]
        for name, child in self.named_children():
            lines += [
                f"  ({name}): {line}" if i == 0 else f"  {line}" for i, line in enumerate(repr(child).split("\n"))
            ]
        return "\n".join(lines)


def _as_tensor(value: Any) -> Tensor:
    """``value`` on its own backend if it has one; lists keep the precision of their floats."""
    known = isinstance(value, Tensor) or backends.backend_of(value) is not None
    return Tensor(value if known else np.asarray(value))
