"""The network face: OpenAI's HTTP API over a ``Service``. It is handed the service and builds nothing."""
