"""Other engines beside ours on the same machine: the same work, taking turns, and the ratio of the rates.

The orchestrator (``compare``) imports no peer. Each engine, ours too, runs in a process of its own inside its own
virtual environment (``environments``) and is spoken to in JSON lines (``protocol``), so that all are treated alike
and none disturbs another's libraries. What is asked of them is in ``work``; the models' shapes are in ``shapes``.
"""
