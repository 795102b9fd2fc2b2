"""Content hashes of blocks, by which the prefix index finds them.

A block's hash covers every token up to its end: ``h[i] = H(h[i-1] ‖ tokens of block i)``, started from a
hash of the salt. Equal hash therefore means equal whole prefix under the same salt, and the longest cached
prefix is found by walking until the first miss. H is BLAKE2b with 16 bytes: a client cannot construct
tokens that collide with another's, as it could with a short or non-cryptographic hash. Nor is the hash believed: a
block is taken only if the tokens themselves, and all before them, are the same (``Prefix``).
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

DIGEST_BYTES = 16


class Prefix:
    """What a block's keys and values are computed from: its tokens, and all before them. Shared by all who have it."""

    __slots__ = ("parent", "tokens")

    def __init__(self, parent: Prefix | None, tokens: bytes) -> None:
        self.parent = parent
        self.tokens = tokens
        """Of the block; of the root, the salt."""

    def same_as(self, other: Prefix) -> bool:
        """Token by token. Ends early where the two meet, which is one block back once that one was compared."""
        a: Prefix | None = self
        b: Prefix | None = other
        while a is not b:
            if a is None or b is None or a.tokens != b.tokens:
                return False
            a, b = a.parent, b.parent
        return True


def root_prefix(salt: str) -> Prefix:
    """What every chain under ``salt`` begins with."""
    return Prefix(None, salt.encode("utf-8", "surrogatepass"))


def root_hash(salt: str) -> bytes:
    """The hash that a chain under ``salt`` starts from."""
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, person=b"tokenmill-salt").digest()


def chain_hash(parent: bytes, tokens: bytes) -> bytes:
    """The hash of a full block that follows ``parent``; ``tokens`` as ``packed`` makes them."""
    return blake2b(parent + tokens, digest_size=DIGEST_BYTES).digest()


def packed(token_ids: list[int]) -> bytes:
    """Four bytes a token."""
    return array("I", token_ids).tobytes()
