"""The operations on tensors, grouped by kind; forward and gradient of each stand side by side.

This package is itself a namespace that gradients compute with: see ``declare.py``.
"""

import sys

from tinygrad_rnn.ops import altered, creation, elementwise, indexing, linalg, reduction, rule, shape
from tinygrad_rnn.ops.altered import *
from tinygrad_rnn.ops.creation import *
from tinygrad_rnn.ops.elementwise import *
from tinygrad_rnn.ops.indexing import *
from tinygrad_rnn.ops.linalg import *
from tinygrad_rnn.ops.linalg import outer_sum  # noqa: F401 - for gradients alone
from tinygrad_rnn.ops.reduction import *
from tinygrad_rnn.ops.shape import *

__all__ = []
__all__ += elementwise.__all__
__all__ += reduction.__all__
__all__ += shape.__all__
__all__ += linalg.__all__
__all__ += indexing.__all__
__all__ += creation.__all__
__all__ += altered.__all__

rule.TENSORS = sys.modules[__name__]
