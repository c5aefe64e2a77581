"""From a recurrent cell to a loop that runs fast, one file a stage.

``record`` hears what one step of a cell does and writes it down as a ``step``; ``derive`` makes of a step the step
that carries cotangents backwards; ``split`` parts it into what must stay in the loop over time and what need not; an
engine, ``array`` or ``numba``, runs what stays; ``run`` puts these together as one operation on the tape.
"""
