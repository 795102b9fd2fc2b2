"""A soak: a real server under a mixed load for hours, beside chaos, and everything that must hold meanwhile.

Bugs that a test of seconds never sees are those that add up (a block, a descriptor, a kibibyte for each request), and
those that need two rare things at the same time. So the load is everything that the API has, drawn at random; beside
it go clients that misbehave in every way that clients do, floods far beyond the capacity, and the engine's process is
killed now and then. What must hold is checked all the time::

    canaries      fixed requests, greedy and seeded, whose answers were taken at the start: the same, byte for byte
    answers       whole, well formed, and what was asked for; streams end with their last word
    errors        only those that the contract names, in its shape; nothing is ever cut without a word
    health        answered, quickly, whatever else goes on; live throughout, ready but for restarts
    recovery      a killed engine is replaced within its time
    blocks        at every quiet moment nothing runs, nothing waits, and no KV block is held
    memory        of each process: no growth with the number of requests (``judge.py`` says how that is told)
    descriptors, threads, metric series                                  the same
    batches       every ``custom_id`` exactly once, through floods and kills
    idle          the first burst after a rest is not slower than the last one before it

The run is a row of *rounds*: load, a flood, now and then a kill, then quiet. Quiet moments are the only ones at which
memory and blocks can be compared, because then the server should hold what an unused one holds.
"""
