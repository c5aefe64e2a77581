"""The strict stand-in's tables against CuPy itself, which can be imported and inspected without a GPU."""

import inspect

import cupy
import numpy as np
import pytest
import strict

import tinygrad_rnn as tg
from tinygrad_rnn import backend

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def positional_and_keywords(parameters: str) -> tuple[list[str], list[str]]:
    positional, _, keywords = parameters.partition("*")
    return positional.split(), keywords.split()


def accepts(parameters: str, signature: list[inspect.Parameter]) -> None:
    """Assert that a function of ``signature`` can be called in every way that a table's entry allows."""
    positional, keywords = positional_and_keywords(parameters)
    assert positional == [p.name for p in signature if p.kind in POSITIONAL][: len(positional)]
    assert {*positional, *keywords} <= {p.name for p in signature if p.kind is not inspect.Parameter.VAR_POSITIONAL}


def method_signature(method: object) -> list[inspect.Parameter]:
    """Parameters as the first line of a Cython method's docstring gives them."""
    text = (method.__doc__ or "").splitlines()[0].partition("(")[2].partition(")")[0].replace("Py_ssize_t ", "")
    namespace: dict[str, object] = {}
    exec(f"def method({text}): pass", namespace)
    return list(inspect.signature(namespace["method"]).parameters.values())[1:]  # type: ignore[arg-type]


def test_the_library_has_what_backends_need_and_cupy_has_what_the_library_has() -> None:
    names = {*strict.UFUNCS, *strict.FUNCTIONS, "einsum", "asarray"}
    assert set(backend.FUNCTIONS) <= names
    assert [name for name in names if not callable(getattr(cupy, name, None))] == []


@pytest.mark.parametrize("name", strict.UFUNCS)
def test_ufunc(name: str) -> None:
    ufunc = getattr(cupy, name)
    assert isinstance(ufunc, cupy.ufunc)
    assert (ufunc.nin, ufunc.nout) == (strict.UFUNCS[name], 1)


@pytest.mark.parametrize("name", strict.UFUNCS)
@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float32", "float64"])
def test_ufunc_result_dtype_is_that_of_the_stand_in(name: str, dtype: str) -> None:
    ufunc = getattr(cupy, name)
    code = np.dtype(dtype).char
    known = set(np.typecodes["All"])  # with ml_dtypes installed CuPy lists bfloat16 too, which NumPy cannot name
    loops = [(ins, out) for ins, out in (loop.split("->") for loop in ufunc.types) if known.issuperset(ins + out)]
    expected = next((out for ins, out in loops if all(np.can_cast(code, needed) for needed in ins)), None)
    operands = [strict.asarray(np.ones(1, dtype=dtype))] * ufunc.nin
    try:
        result = getattr(strict.library, name)(*operands).dtype.char
    except TypeError:
        result = None
    if dtype == "bool" and name in ("negative", "subtract", "sign"):
        assert result is None  # NumPy refuses what CuPy takes
    else:
        assert result == expected


def test_ufunc_keywords() -> None:
    for keyword in ("out", "dtype"):
        assert f"\n    {keyword}" in cupy.ufunc.__call__.__doc__
        assert keyword in inspect.signature(strict.Ufunc.__call__).parameters
    assert "where" not in inspect.signature(strict.Ufunc.__call__).parameters


@pytest.mark.parametrize("name", strict.FUNCTIONS)
def test_function(name: str) -> None:
    if name == "matmul":  # *args, **keywords
        assert "out" in inspect.signature(cupy.matmul).parameters
    elif name == "pad":  # mode-dependent keywords
        accepts("array pad_width mode", list(inspect.signature(cupy.pad).parameters.values()))
        assert strict.FUNCTIONS[name] == "array pad_width mode * constant_values"
        assert "'constant': ['constant_values']" in inspect.getsource(cupy.pad)
    else:
        accepts(strict.FUNCTIONS[name], list(inspect.signature(getattr(cupy, name)).parameters.values()))


def test_functions_of_their_own() -> None:
    assert inspect.signature(cupy.einsum).parameters["operands"].kind is inspect.Parameter.VAR_POSITIONAL
    accepts("a dtype", list(inspect.signature(cupy.asarray).parameters.values()))
    assert "(self, a, indices, b=None)" in cupy.ufunc.at.__doc__
    for name in ("random", "standard_normal"):
        ours = inspect.signature(getattr(strict.Generator, name)).parameters
        theirs = inspect.signature(getattr(cupy.random.Generator, name)).parameters
        assert list(ours) == list(theirs)[: len(ours)]
    assert issubclass(cupy.random.Philox4x3210, cupy.random.BitGenerator)


@pytest.mark.parametrize("name", strict.METHODS)
def test_method(name: str) -> None:
    signature = method_signature(getattr(cupy.ndarray, name))
    if strict.METHODS[name].startswith("*"):
        assert signature[0].kind is inspect.Parameter.VAR_POSITIONAL
    else:
        accepts(strict.METHODS[name], signature)


def test_everything_else_that_the_array_has() -> None:
    own = {name for name in vars(strict.StrictArray) if name not in vars(object) and name not in strict.METHODS}
    bookkeeping = {"__module__", "__slots__", "_host", "__annotations__", "__firstlineno__", "__static_attributes__"}
    assert [name for name in own - bookkeeping if not hasattr(cupy.ndarray, name)] == []
    accepts("dtype * copy", method_signature(cupy.ndarray.astype))
    assert cupy.ndarray.__hash__ is None
    assert all(hasattr(cupy._core.flags.Flags, name) for name in vars(strict.asarray(0).flags))
    assert not hasattr(cupy.ndarray, "__index__")


def test_without_a_gpu_the_error_names_the_driver_and_changes_nothing() -> None:
    if cupy.cuda.is_available():
        with tg.use_backend("cupy"):
            assert tg.zeros(1).backend == "cupy"
        return
    before = tg.get_backend()
    with pytest.raises(RuntimeError, match="NVIDIA's driver"):
        tg.set_backend("cupy")
    assert tg.get_backend() is before
    with pytest.raises(RuntimeError, match="NVIDIA's driver"), tg.use_backend("cupy"):
        pass
    assert tg.get_backend() is before
