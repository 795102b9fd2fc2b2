"""An engine in a process of its own, beside the one that talks HTTP.

::

    HTTP process                                           engine process
    RemoteService ── wire: requests, aborts ──▶  host ── commands ──▶ EngineThread ── Engine
      handles     ◀── tokens, ends, numbers ──        ◀── events ──
      text                                       weights, KV, sampling

Tokens cross, text does not: tokenising, stop strings and detokenising stay with whoever talks to clients. The two
halves hold the ends of one socket pair; nothing listens, and no other process has a way in. What dies on the engine's
side (a segfault, the kernel's out-of-memory killer, a step that hangs) leaves the HTTP process answering, which
starts another engine and has it go on where the last one was lost.
"""
