"""Content hashes of blocks, by which the prefix index finds them.

A block's hash covers every token up to its end: ``h[i] = H(h[i-1] ‖ tokens of block i)``, started from a
hash of the salt. Equal hash therefore means equal whole prefix under the same salt, and the longest cached
prefix is found by walking until the first miss. H is BLAKE2b with 16 bytes: a client cannot construct
tokens that collide with another's, as it could with a short or non-cryptographic hash.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

DIGEST_BYTES = 16


def root_hash(salt: str) -> bytes:
    """The hash that a chain under ``salt`` starts from."""
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, person=b"tokenmill-salt").digest()


def chain_hash(parent: bytes, token_ids: list[int]) -> bytes:
    """The hash of a full block that follows ``parent``."""
    return blake2b(parent + array("I", token_ids).tobytes(), digest_size=DIGEST_BYTES).digest()
