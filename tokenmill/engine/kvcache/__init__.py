"""The paged KV cache, as accounting: which block holds which tokens, who shares it, which one goes next."""

from tokenmill.engine.kvcache.manager import KVCache

__all__ = ["KVCache"]
