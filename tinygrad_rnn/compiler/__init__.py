"""From a recurrent cell to a loop that runs fast, one file a stage.

``record`` hears what one step of a cell does and writes it down as a ``step``; ``derive`` makes of a step the step
that carries cotangents backwards; ``split`` parts it into what must stay in the loop over time and what need not; an
engine runs what stays; ``run`` puts these together as one operation on the tape.

To be read in this order:

- recording: ``step``, ``record``; ``watch``, with ``notes`` and ``movers``, whether a cell changes anything of its own;
  ``pure``, doing without a recording, and ``proof``, of what that is safe
- parting: ``derive``, ``split``, ``program``, ``run``; ``segments``, less memory for more time
- engines: ``engines`` names them; ``array``, with ``joined``, by which it calls less, and ``pool``, its memory; and
  ``jit``, of loops that Numba compiles: ``lower``, ``places``, ``layout`` where things are, ``loops`` the generated
  source, ``scalars`` and ``product`` what that calls, ``philox`` and ``passes`` what else is compiled, ``memory``, its
  threads in ``team`` and ``board``; ``native`` calls machine code, which ``build`` makes and ``cache`` keeps
- besides: ``lanes``, one step at a time, for `compile_step`; ``explain``, for `plan`
"""
