"""Grammars: from what an answer must look like to the tokens that may come next.

::

    Grammar ─ check ─ trial in a child process ─ first mask over the vocabulary ─ cache ─┬─ Matcher of one answer
    (core)    (size,   (killed at its budget)     (a thread, not the event loop)         ├─ Matcher of another
              shape)                                                                     └─ …

Grammars come from strangers, and the library that compiles them (llguidance) is native code: a chain of a few
thousand references overflows its stack, and some numbers cost it seconds. So a new grammar is first compiled by a
child process with limits of time, memory and stack; only one that passes is compiled here.
A matcher says after each token which ones may follow, as a bit mask over the vocabulary.

=================  ===========================================================================
``source.py``      what is accepted at all, and what a refusal says
``schema.py``      walking a JSON schema: its references, and where a complaint belongs
``trial.py``       the child process: conversion and first compilation
``vocabulary.py``  the tokens' bytes as llguidance wants them
``matcher.py``     one answer's way through its grammar
``compiler.py``    ``GrammarCompiler``: threads, budget, one compilation per grammar, cache
=================  ===========================================================================

The package itself imports nothing: the child process loads only what a trial needs.
"""
