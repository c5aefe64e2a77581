"""Nests: tuples, lists and dicts of tensors, in each other at any depth, as states of recurrent cells are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tinygrad_rnn.tensor import Tensor


def leaves(nest: Any, where: str = "") -> list[tuple[str, Any]]:
    """What ``nest`` holds, in order, each with its place in it, such as ``[0]['h']``."""
    if isinstance(nest, Tensor):
        return [(where, nest)]
    if isinstance(nest, (tuple, list)):
        return [leaf for i, part in enumerate(nest) for leaf in leaves(part, f"{where}[{i}]")]
    if isinstance(nest, Mapping):
        return [leaf for key, part in nest.items() for leaf in leaves(part, f"{where}[{key!r}]")]
    return [(where, nest)]


def flat(nest: Any) -> list[Any]:
    """What ``nest`` holds, in order."""
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, (tuple, list)):
        return [leaf for part in nest for leaf in flat(part)]
    if isinstance(nest, Mapping):
        return [leaf for part in nest.values() for leaf in flat(part)]
    return [nest]


def map_nest(function: Callable[..., Any], nest: Any, *others: Any) -> Any:
    """A nest like ``nest`` of the results of ``function`` on what it and ``others`` hold at each place.

    Raises
    ------
    TypeError
        If one of ``others`` is not built as ``nest`` is.
    """
    if nest is None or isinstance(nest, Tensor) or not isinstance(nest, (tuple, list, Mapping)):
        for other in others:
            if not isinstance(other, Tensor) and isinstance(other, (tuple, list, Mapping)):
                raise TypeError(f"the nests differ: {describe(nest)} and {describe(other)}")
        return function(nest, *others)
    for other in others:
        if type(other) is not type(nest) or len(other) != len(nest):
            raise TypeError(f"the nests differ: {describe(nest)} and {describe(other)}")
    if isinstance(nest, Mapping):
        for other in others:
            if other.keys() != nest.keys():
                raise TypeError(f"the nests differ: {describe(nest)} and {describe(other)}")
        return {key: map_nest(function, part, *[other[key] for other in others]) for key, part in nest.items()}
    parts = [map_nest(function, *group) for group in zip(nest, *others, strict=True)]
    if isinstance(nest, list):
        return parts
    return type(nest)(*parts) if hasattr(nest, "_fields") else tuple(parts)


def filled(like: Any, values: Iterable[Any]) -> Any:
    """A nest like ``like`` that holds ``values``, in order; of an iterator it takes no more than it holds."""
    return _filled(like, iter(values))


def _filled(like: Any, values: Iterator[Any]) -> Any:
    kind = type(like)
    if kind is tuple:
        return tuple([_filled(part, values) for part in like])
    if kind is dict:
        return {key: _filled(part, values) for key, part in like.items()}
    if like is None or isinstance(like, Tensor):
        return next(values)
    return map_nest(lambda _: next(values), like)


def form(nest: Any) -> Any:
    """Equal for nests that are built alike, whatever they hold."""
    if isinstance(nest, Tensor):
        return None
    if isinstance(nest, (tuple, list)):
        return type(nest), tuple([form(part) for part in nest])
    if isinstance(nest, Mapping):
        return dict, tuple([(key, form(part)) for key, part in nest.items()])
    return None


def built_in(nest: Any) -> bool:
    """Whether a nest is made of Python's own tuples, lists and dicts alone, not of types derived from them."""
    if type(nest) in (tuple, list):
        return all(map(built_in, nest))
    if type(nest) is dict:
        return all(map(built_in, nest.values()))
    return isinstance(nest, Tensor) or not isinstance(nest, (tuple, list, Mapping))


def describe(nest: Any) -> str:
    """How error messages show a nest: its brackets, and the shapes of its tensors."""
    if isinstance(nest, list):
        return f"[{', '.join(map(describe, nest))}]"
    if isinstance(nest, tuple):
        return f"({', '.join(map(describe, nest))}{',' if len(nest) == 1 else ''})"
    if isinstance(nest, Mapping):
        return f"{{{', '.join(f'{key!r}: {describe(part)}' for key, part in nest.items())}}}"
    return f"tensor of {nest.shape}" if isinstance(nest, Tensor) else type(nest).__name__


def detach(nest: Any) -> Any:
    """The same nest of the same data, out of the graph: what to carry from one batch to the next."""
    return map_nest(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, nest)
