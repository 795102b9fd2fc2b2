"""The wire format's only home: what a request may hold, and what an answer does hold.

Requests are strict pydantic models: no coercion (``true`` is not 1, ``"3"`` is not 3), every number bounded
and finite, unknown fields refused, ``null`` the same as left out. Answers are ``TypedDict``: plain
dictionaries when the server runs, checked by the type checker, and described to clients by
``/openapi.json``, which is made from both.
"""
