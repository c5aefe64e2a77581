"""The two ways to ask for gradients: `Tensor.backward`, which leaves them in the leaves, and the function `grad`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from tinygrad_rnn import tape
from tinygrad_rnn.backend import Array
from tinygrad_rnn.tensor import Tensor, TensorLike, _backend, _name, _wrap

Cotangents: TypeAlias = "Tensor | Array | Sequence[Any] | None"


def backward(tensor: Tensor, given: TensorLike | None, retain: bool, create_graph: bool) -> None:
    """See `Tensor.backward`."""
    if not tensor.requires_grad:
        raise RuntimeError(
            f"backward on {_name(tensor)}, which depends on no tensor with requires_grad=True "
            "(or was computed under no_grad)"
        )
    root = _cotangent(tensor, given, "grad", create_graph)
    handed_out = {id(root)}
    for leaf, cotangent in tape.walk([(_key(tensor), root)], None, create_graph, retain).items():
        if create_graph:
            leaf.grad = cotangent if leaf.grad is None else leaf.grad + cotangent
        elif leaf.grad is None:
            leaf.grad = _wrap(_own(leaf, cotangent, handed_out))
        else:
            leaf.grad = _wrap(_backend(leaf).asarray(leaf.grad._data + cotangent))


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Cotangents = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    retain_graph: bool | None = None,
) -> Any:
    """Gradients of ``outputs`` by ``inputs``, leaving every ``.grad`` as it is.

    Parameters
    ----------
    outputs, inputs
        A tensor or a sequence of tensors. Inputs may be results of operations as well as leaves.
    grad_outputs
        The cotangent of each output; may be left out for outputs of one element.
    create_graph
        Record the computation of the gradients, so that they can be differentiated again.
    allow_unused
        Give None for an input that the outputs do not depend on, instead of raising.
    retain_graph
        Keep the graph for another call; None means ``create_graph``.

    Returns
    -------
    A tensor if ``inputs`` is a tensor, otherwise a tuple of one for each input.
    """
    single = isinstance(inputs, Tensor)
    sources: list[Tensor] = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    results: list[Tensor] = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if isinstance(outputs, Tensor):
        given: list[Any] = [grad_outputs]
    else:
        given = [None] * len(results) if grad_outputs is None else list(grad_outputs)
    if len(given) != len(results):
        raise ValueError(f"grad_outputs must hold one cotangent for each of {len(results)} outputs, got {len(given)}")
    for kind, tensors in (("inputs", sources), ("outputs", results)):
        for i, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{kind}[{i}] must be a Tensor, got {type(tensor).__name__}")
            if not tensor.requires_grad:
                raise RuntimeError(f"{kind}[{i}] does not require a gradient: {_name(tensor)}")
    roots = [
        (_key(result), _cotangent(result, cotangent, f"grad_outputs[{i}]", create_graph))
        for i, (result, cotangent) in enumerate(zip(results, given, strict=True))
    ]
    wanted = {_key(source) for source in sources}
    found = tape.walk(roots, wanted, create_graph, create_graph if retain_graph is None else retain_graph)
    handed_out = {id(cotangent) for _, cotangent in roots}
    gradients: list[Tensor | None] = []
    for i, source in enumerate(sources):
        cotangent = found.get(_key(source))
        if cotangent is None:
            if not allow_unused:
                raise RuntimeError(
                    f"the outputs do not depend on inputs[{i}], {_name(source)}; allow_unused=True gives None for it"
                )
            gradients.append(None)
        else:
            gradients.append(cotangent if create_graph else _wrap(_own(source, cotangent, handed_out)))
    return gradients[0] if single else tuple(gradients)


def _key(tensor: Tensor) -> tape.Parent:
    return tensor if tensor._node is None else tensor._node


def _own(leaf: Tensor, cotangent: Array, handed_out: set[int]) -> Array:
    """``cotangent`` as an array in C order that shares no memory with another gradient."""
    array = _backend(leaf).asarray(cotangent)
    if array.base is not None or id(cotangent) in handed_out or not array.flags.c_contiguous:
        return array.copy()
    handed_out.add(id(cotangent))
    return array


def _cotangent(tensor: Tensor, given: Any, argument: str, as_tensor: bool) -> Any:
    backend = _backend(tensor)
    if given is None:
        if tensor.size != 1:
            raise RuntimeError(
                f"only a tensor of one element has a gradient of its own, this one has shape {tensor.shape}: "
                f"reduce it first (.sum(), .mean()) or pass {argument}"
            )
        ones = backend.ones(tensor.shape, dtype=tensor.dtype)
        return _wrap(ones) if as_tensor else ones
    if not isinstance(given, Tensor):
        given = Tensor(backend.asarray(given, dtype=tensor.dtype))
    if given.shape != tensor.shape:
        raise ValueError(f"{argument} must have the shape of its tensor, {tensor.shape}, got {given.shape}")
    if given.backend != backend.name:
        raise TypeError(
            f"{argument} is on {given.backend}, its tensor on {backend.name}: move it with .to({backend.name!r})"
        )
    if given.dtype != tensor.dtype:
        given = given.astype(tensor.dtype)
    return given if as_tensor else given._data
