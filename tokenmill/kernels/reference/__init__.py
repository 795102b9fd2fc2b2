"""Every operation in plain PyTorch: the truth that faster forms are held to.

The rule of this package: **the result for a row depends on that row alone**, bit for bit. It does not matter
how many rows share the call, where among them a row stands, or how a prompt was cut into calls. On a CPU that
does not come by itself, since libraries choose their order of summation, and vector or scalar code, by shape:

- Matrix products (``linear``, ``attention``) run in tiles of a fixed shape, padded, and always as a batch of
  several matrices, of a number of rows that leaves MKL no remainder rows. Given a batch, MKL hands whole
  matrices to threads; given one matrix it may split its rows between threads, and rows at the edge of a split
  come out with other bits.
- ``exp`` is given slices that all take the vector path (``elementwise``).
- Sums run over the last dimension of a contiguous tensor, one row after the other.
- ``+ - * /`` and square root are correctly rounded wherever they run; nothing here uses fused multiply-add
  (``addcmul``, ``add(alpha=…)``) or approximations (``rsqrt``).

On other devices the same code gives the same numbers to rounding, without the promise.
"""
