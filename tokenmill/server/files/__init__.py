"""OpenAI's files: uploaded in a stream, kept by tenant, handed out again."""
