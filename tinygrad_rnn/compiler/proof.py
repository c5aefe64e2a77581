"""Functions that are pure by what their code can do, without their author's promise; see ``pure``.

Code is taken for pure only if each of its instructions, and each name of an attribute or a builtin in it, is known to
change nothing but what the function has made itself and to give nothing that is not told by what it is given: these are
lists of what is allowed, so what is new to them, in another version of Python even, is not. What such code reads from
outside is looked at anew at each call.
"""

from __future__ import annotations

import dis
import re
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from tinygrad_rnn import functional, ops
from tinygrad_rnn.compiler.watch import Memo, package_of_module

_OF_TENSORS = {"T", "astype", "detach", "dtype", "max", "mean", "ndim", "reshape", "shape", "size", "sum"}
_OF_MODULES = {
    "Tensor",
    "bool_",
    "expose",
    "float32",
    "float64",
    "functional",
    "inf",
    "int32",
    "int64",
    "nan",
    "ops",
    "pi",
}
# Names of operations and of constants: none changes anything, of whichever of the objects that can be reached.
ATTRIBUTES = frozenset({*ops.__all__, *functional.__all__, *_OF_TENSORS, *_OF_MODULES})
_SAFE: tuple[Any, ...] = (
    abs,
    bool,
    enumerate,
    float,
    int,
    isinstance,
    len,
    list,
    max,
    min,
    range,
    reversed,
    sum,
    tuple,
)
BUILTINS = frozenset(one.__name__ for one in (*_SAFE, zip, AssertionError, TypeError, ValueError))
FUNCTIONS = frozenset(getattr(module, name) for module in (ops, functional) for name in module.__all__)
MODULES = ("tinygrad_rnn", "numpy", "math")
_INSTRUCTIONS = re.compile(
    "CACHE|COPY_FREE_VARS|EXTENDED_ARG|KW_NAMES|MAKE_CELL|NOP|NOT_TAKEN|PRECALL|PUSH_NULL|RESUME"
    "|LOAD_(ASSERTION_ERROR|CLOSURE|COMMON_CONSTANT|CONST|DEREF|FAST|FAST_AND_CLEAR|FAST_BORROW|FAST_CHECK|GLOBAL)"
    "|LOAD_(FAST_BORROW_LOAD_FAST_BORROW|FAST_LOAD_FAST|SMALL_INT)"
    "|CALL|CALL_FUNCTION_EX|CALL_KW|MAKE_FUNCTION|SET_FUNCTION_ATTRIBUTE|RAISE_VARARGS|RERAISE|RETURN_(CONST|VALUE)"
    "|BINARY_(SLICE|SUBSCR)|(COMPARE|CONTAINS|IS)_OP|TO_BOOL|UNARY_(INVERT|NEGATIVE|NOT|POSITIVE)"
    "|BUILD_(CONST_KEY_MAP|LIST|MAP|SLICE|TUPLE)|DICT_MERGE|LIST_(APPEND|EXTEND|TO_TUPLE)|MAP_ADD"
    "|UNPACK_(EX|SEQUENCE)|COPY|POP_TOP|SWAP|END_FOR|FOR_ITER|GET_ITER|POP_ITER"
    "|JUMP_(BACKWARD|BACKWARD_NO_INTERRUPT|FORWARD)|JUMP_IF_(FALSE|TRUE)_OR_POP"
    "|POP_JUMP_((BACKWARD|FORWARD)_)?IF_(FALSE|NONE|NOT_NONE|TRUE)"
)


def _attributes(code: CodeType, first: str = "") -> frozenset[str] | None:
    """See below; ``first`` is the first argument's name in the code that this is within."""
    if first in code.co_varnames:  # another variable of that name
        return None
    first = first or "".join(code.co_varnames[:1])
    found: set[str] = set()
    top = ""  # the variable that was read last, if nothing has been done since
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        variables = value if type(value) is tuple else (value,)
        if name in ("LOAD_ATTR", "LOAD_METHOD"):
            allowed = value in ATTRIBUTES or top == first != ""
            found.add(value)
        elif name.startswith("STORE_"):
            # Not the first argument; of those that functions inside read none but its own.
            own = name.startswith("STORE_FAST") or (name == "STORE_DEREF" and value in code.co_cellvars)
            allowed = own and first not in (variables[:1] if name == "STORE_FAST_LOAD_FAST" else variables)
        elif name == "BINARY_OP":
            allowed = not instruction.argrepr.endswith("=")  # which changes a list in place
        else:
            allowed = _INSTRUCTIONS.fullmatch(name) is not None
        if not allowed:
            return None
        reads = "LOAD_FAST" in name or name == "LOAD_DEREF"
        top = variables[-1] if reads else top if name == "EXTENDED_ARG" else ""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inside = _attributes(constant, first)
            if inside is None:
                return None
            found |= inside
    return frozenset(found - ATTRIBUTES)


# Of code that can change nothing: what attributes, but for those above, it reads of its first argument. None of other
# code, and if it reads such attributes of anything else.
attributes_of = Memo(_attributes)


def known(value: FunctionType | BuiltinFunctionType | ModuleType) -> bool:
    """Whether a function or builtin that is not the user's is one that changes nothing, a module one of those."""
    if type(value) is FunctionType:
        return value in FUNCTIONS
    if type(value) is BuiltinFunctionType:
        return value.__module__ == "math" or (value.__module__ == "builtins" and value.__name__ in BUILTINS)
    return value.__name__.partition(".")[0] in MODULES and package_of_module(value) is not None
