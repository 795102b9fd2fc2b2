"""Everything that is measured on a GPU, in one command that ends in time: ``make gpu``, ``tokenmill bench gpu``.

::

    run ── for each stage, within its share of the minutes ── worker (a process of its own) ── units, in turn
     │                                                          │
     │   tests, kernels, step, offline, peers, probe            └─ a line per unit, as soon as it is done
     └─ a result file per stage ── scorecard: each aim, what was seen, whether it was reached

A kernel that writes where it must not takes its whole process with it, and one that never ends holds it; so the work
is done in processes that can be lost. The unit that was under way is then marked as failed, with what the process
last said, and another process goes on with the next.

``toy``: the same code at toy sizes on the CPU, Triton's interpreter in the place of the compiler, times by the host's
clock. Its figures mean nothing; that it runs means that the minutes on a GPU are not lost to a slip.
"""
