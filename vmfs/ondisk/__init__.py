"""The on-disk format: one module a structure, each specified in its docstring and read and written there alone.

Stands on `vmfs.errors` and `xxhash`. Everything is little-endian. Volume addresses are 64-bit: extent index in bits
56..63, byte offset within that extent in bits 0..55.
"""
