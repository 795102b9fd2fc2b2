"""Text: chat templates, tokens, incremental decoding, stop strings.

::

    messages ─ template ─ guard ─┐
                                 ├─ tokens … engine … tokens ─ Detokenizer ─ StopMatcher ─ text
    prompt ──────────────────────┘

``TextCodec`` is the one object that others hold. It is made from a checkpoint folder, knows no device and no
request, and is the same for all of them; ``Detokenizer`` and ``StopMatcher`` are made per choice of a request.
"""

from tokenmill.engine.text.codec import TextCodec
from tokenmill.engine.text.stream import Detokenizer, StopMatcher

__all__ = ["Detokenizer", "StopMatcher", "TextCodec"]
