"""The records that cross to the kernels: ``src/kernels.h``, field by field. Shapes and meanings are told there."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from typing import Any

PANEL = 64
"""Outputs of a panel of packed weights."""


class Rows(IntEnum):
    """Over which rows a kernel runs."""

    TOKENS = 0
    OUTPUTS = 1


class WeightFormat(IntEnum):
    """How packed values are stored."""

    BF16 = 0
    INT8 = 1
    INT4 = 2


class Epilogue(IntEnum):
    """What a linear kernel does with its result."""

    STORE = 0
    ADD = 1
    SWIGLU = 2


class Step(ctypes.Structure):
    _fields_ = [
        ("num_tokens", c_int64),
        ("num_rows", c_int64),
        ("num_outputs", c_int64),
        ("table_stride", c_int64),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("row_begin", c_void_p),
        ("tables", c_void_p),
        ("outputs", c_void_p),
    ]


class Quantized(ctypes.Structure):
    _fields_ = [("values", c_void_p), ("scales", c_void_p), ("sums", c_void_p)]


class Weight(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("scales", c_void_p),
        ("in_size", c_int64),
        ("out_size", c_int64),
        ("group", c_int64),
        ("format", c_int32),
        ("pad_", c_int32),
    ]


class EmbeddingArgs(ctypes.Structure):
    _fields_ = [("table", c_void_p), ("packed", Weight), ("out", c_void_p), ("size", c_int64)]


class RmsNormArgs(ctypes.Structure):
    _fields_ = [
        ("x", c_void_p),
        ("weight", c_void_p),
        ("out", c_void_p),
        ("quantized", Quantized),
        ("size", c_int64),
        ("group", c_int64),
        ("eps", c_float),
        ("rows", c_int32),
    ]


class QuantizeArgs(ctypes.Structure):
    _fields_ = [
        ("x", c_void_p),
        ("out", Quantized),
        ("size", c_int64),
        ("group", c_int64),
        ("rows_per_token", c_int64),
    ]


class LinearArgs(ctypes.Structure):
    _fields_ = [
        ("weight", Weight),
        ("bias", c_void_p),
        ("x", c_void_p),
        ("quantized", Quantized),
        ("out", c_void_p),
        ("epilogue", c_int32),
        ("rows", c_int32),
    ]


class Routing(ctypes.Structure):
    _fields_ = [
        ("ids", c_void_p),
        ("weights", c_void_p),
        ("places", c_void_p),
        ("num_active", c_void_p),
        ("experts", c_void_p),
        ("begins", c_void_p),
        ("per_token", c_int64),
    ]


class RouteArgs(ctypes.Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("routing", Routing),
        ("x", c_void_p),
        ("quantized", Quantized),
        ("out", c_void_p),
        ("out_quantized", Quantized),
        ("num_experts", c_int64),
        ("size", c_int64),
        ("group", c_int64),
        ("normalize", c_int32),
        ("pad_", c_int32),
    ]


class ExpertsArgs(ctypes.Structure):
    _fields_ = [("linear", LinearArgs), ("routing", Routing)]


class CombineArgs(ctypes.Structure):
    _fields_ = [("x", c_void_p), ("routing", Routing), ("out", c_void_p), ("size", c_int64)]


class KvCache(ctypes.Structure):
    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("block_size", c_int64),
        ("num_heads", c_int32),
        ("head_dim", c_int32),
        ("format", c_int32),
        ("pad_", c_int32),
    ]


class RopeKvArgs(ctypes.Structure):
    _fields_ = [
        ("qkv", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("q", c_void_p),
        ("kv", KvCache),
        ("num_heads", c_int32),
        ("eps", c_float),
    ]


class AttentionArgs(ctypes.Structure):
    _fields_ = [
        ("q", c_void_p),
        ("kv", KvCache),
        ("out", c_void_p),
        ("num_heads", c_int32),
        ("window", c_int32),
        ("scale", c_float),
        ("pad_", c_int32),
    ]


class ChooseArgs(ctypes.Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("temperatures", c_void_p),
        ("uniforms", c_void_p),
        ("top_ks", c_void_p),
        ("top_ps", c_void_p),
        ("min_ps", c_void_p),
        ("ids", c_void_p),
        ("size", c_int64),
    ]


class CopyBlocksArgs(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("block_bytes", c_int64), ("pairs", c_void_p), ("num_pairs", c_int64)]


class ProbeArgs(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("num_bytes", c_int64), ("num_rounds", c_int64), ("sink", c_void_p)]


class Call(ctypes.Structure):
    _fields_ = [("kernel", c_void_p), ("args", c_void_p), ("ahead", c_void_p)]


Args = (
    EmbeddingArgs
    | RmsNormArgs
    | QuantizeArgs
    | LinearArgs
    | RouteArgs
    | ExpertsArgs
    | CombineArgs
    | RopeKvArgs
    | AttentionArgs
    | ChooseArgs
    | CopyBlocksArgs
    | ProbeArgs
)

RECORDS: tuple[type[Any], ...] = (
    Step,
    Quantized,
    Weight,
    EmbeddingArgs,
    RmsNormArgs,
    QuantizeArgs,
    LinearArgs,
    KvCache,
    RopeKvArgs,
    AttentionArgs,
    ChooseArgs,
    CopyBlocksArgs,
    ProbeArgs,
    Routing,
    RouteArgs,
    ExpertsArgs,
    CombineArgs,
    Call,
)
"""In the order in which ``tm_record_sizes`` tells their sizes."""
