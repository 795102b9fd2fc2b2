"""``/v1/responses``: OpenAI's Responses API over the same turns as chat.

::

    endpoints.py      the routes
    conversation.py   items, the earlier responses' included → a ``ChatRequest``
    prompt.py         that, by chat's own way → what the engine is given, shortened where it may be
    writer.py         pieces of the turn → output items, and an event for each change
    answer.py         one response under way: generation → writer → store
    background.py     responses that go on without a connection
    store.py          what is kept of them, bounded, each for its tenant only
    state.py          the two together, for as long as the server runs
"""
