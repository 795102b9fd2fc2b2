"""OpenAI's batches: a file of requests, answered in what interactive work leaves, each exactly once."""
