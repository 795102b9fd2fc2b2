"""``ModelConfig``: one normalised description of a decoder, whoever wrote the checkpoint.

Every part that must know a model's shape (layers, cache, memory ledger, cost model) reads this record and
nothing else. ``from_hf`` makes it from the content of a Hugging Face ``config.json``: it resolves what that
format leaves implicit (defaults differ by family, as in ``transformers``), and checks every field against
a limit, so that whoever allocates from a ``ModelConfig`` cannot be made to allocate the absurd.

A field that is missing or out of bounds raises ``CheckpointError`` with its name; a model that is well
described but not built here raises ``NotSupported``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenmill.core.errors import CheckpointError, NotSupported

RopeKind = Literal["default", "linear", "llama3", "yarn"]

MAX_HIDDEN_SIZE = 2**18
MAX_LAYERS = 2**10
MAX_HEADS = 2**12
MAX_HEAD_DIM = 2**10
MAX_INTERMEDIATE_SIZE = 2**20
MAX_VOCAB_SIZE = 2**22
MAX_CONTEXT = 2**22
MAX_EOS_IDS = 64
MAX_EXPERTS = 2**10
MAX_EXPERTS_IN_ALL = 2**15
"""Over all layers: a checkpoint has three tensors for each."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding: base frequency, and how it is stretched beyond the trained context."""

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    """How many times the trained context is stretched (all kinds but ``default``)."""
    original_context: int = 0
    """The trained context in tokens (``llama3``, ``yarn``)."""
    low_freq_factor: float = 1.0
    """``llama3``: wavelengths above ``original_context / low_freq_factor`` are stretched in full."""
    high_freq_factor: float = 4.0
    """``llama3``: wavelengths below ``original_context / high_freq_factor`` are left alone."""
    beta_fast: float = 32.0
    """``yarn``: dimensions turning more often than this within ``original_context`` are left alone."""
    beta_slow: float = 1.0
    """``yarn``: dimensions turning less often than this are stretched in full."""
    attention_factor: float = 1.0
    """``yarn``: multiplies cosines and sines."""
    truncate: bool = True
    """``yarn``: round the bounds of the ramp to whole dimensions."""


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """A mixture of experts: of ``num_experts`` gated MLPs in a layer, each token goes through ``num_active``."""

    num_experts: int
    num_active: int
    intermediate_size: int
    """Of one expert."""
    normalize_topk: bool
    """The weights of a token's experts are made to add up to 1."""
    layers: tuple[int, ...]
    """Which layers have experts; the others have one MLP of the model's ``intermediate_size``."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer with rotary positions, RMS norms and gated MLPs."""

    architecture: str
    """The class name that the checkpoint was written for: ``LlamaForCausalLM``."""
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_context: int
    """Most token positions that the model was made for."""
    rope: RopeSpec
    windows: tuple[int | None, ...]
    """Per layer: how many positions back a token sees, itself included; None: all."""
    activation: str = "silu"
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    """The output matrix is the embedding matrix."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Each query and key head is normalised before the rotation."""
    experts: ExpertsSpec | None = None
    """None: every layer has one MLP."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None
    """Precision of the checkpoint, if it says so: ``bfloat16``."""
    quantization: str | None = None
    """Scheme of the checkpoint's weights; None: plain floating point."""
    generates: bool = True
    """False: saved without its output matrix, for embeddings alone (``"architectures": ["Qwen3Model"]``)."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Normalise the content of a ``config.json``.

        Raises:
            CheckpointError: a field is missing, of the wrong type or out of bounds; names the field.
            NotSupported: another architecture, activation or rotary scaling; names what is supported.
        """
        architecture, family, generates = _family(config)
        read = _Reader(config, family.defaults)
        hidden_size = read.integer("hidden_size", 1, MAX_HIDDEN_SIZE)
        num_layers = read.integer("num_hidden_layers", 1, MAX_LAYERS)
        num_heads, num_kv_heads, head_dim = _head_shapes(read, hidden_size)
        max_context = read.integer("max_position_embeddings", 1, MAX_CONTEXT)
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise NotSupported(f"hidden_act {_brief(activation)} is not supported; supported: 'silu'")
        attention_bias = read.boolean("attention_bias")
        return cls(
            architecture=architecture,
            model_type=family.model_type,
            vocab_size=read.integer("vocab_size", 1, MAX_VOCAB_SIZE),
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            intermediate_size=read.integer("intermediate_size", 1, MAX_INTERMEDIATE_SIZE),
            max_context=max_context,
            rope=_rope(config, max_context, family.theta),
            windows=_windows(read, family, num_layers),
            activation="silu",
            norm_eps=read.number("rms_norm_eps", 0.0, 1.0),
            tie_embeddings=read.boolean("tie_word_embeddings") or not generates,
            qkv_bias=attention_bias or family.qkv_bias,
            out_bias=attention_bias,
            mlp_bias=read.boolean("mlp_bias"),
            qk_norm=family.qk_norm,
            experts=_experts(read, family, num_layers),
            bos_token_id=next(iter(token_ids(config, "bos_token_id")), None),
            eos_token_ids=token_ids(config, "eos_token_id"),
            dtype=_dtype_name(config),
            quantization=_quantization(config),
            generates=generates,
        )

    @property
    def num_groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def experts_of(self, layer: int) -> ExpertsSpec | None:
        """None: this layer has one MLP."""
        return self.experts if self.experts is not None and layer in self.experts.layers else None

    @property
    def num_dense_layers(self) -> int:
        """Layers with one MLP."""
        return self.num_layers - (len(self.experts.layers) if self.experts is not None else 0)

    @property
    def num_parameters(self) -> int:
        return sum(self.parameter_counts().values())

    def parameter_counts(self) -> dict[str, int]:
        """Exact number of stored parameters by tensor class; ``lm_head`` is 0 where embeddings are tied.

        ``router`` and ``experts`` are there if the model has experts.
        """
        hidden, ffn, layers = self.hidden_size, self.intermediate_size, self.num_layers
        qkv_out = self.q_size + 2 * self.kv_size
        attention = hidden * qkv_out + self.q_size * hidden
        attention += qkv_out * self.qkv_bias + hidden * self.out_bias
        mlp = 3 * hidden * ffn + (2 * ffn + hidden) * self.mlp_bias
        norm = 2 * hidden + 2 * self.head_dim * self.qk_norm
        experts = {}
        if self.experts is not None:
            in_all = len(self.experts.layers) * self.experts.num_experts
            experts = {"router": in_all * hidden, "experts": in_all * 3 * hidden * self.experts.intermediate_size}
        return {
            "embedding": self.vocab_size * hidden,
            "attention": layers * attention,
            "mlp": self.num_dense_layers * mlp,
            **experts,
            "norm": layers * norm + hidden,
            "lm_head": 0 if self.tie_embeddings else self.vocab_size * hidden,
        }


# --- families ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family reads ``config.json``: what an absent field means, and what is built in."""

    model_type: str
    defaults: Mapping[str, Any]
    qkv_bias: bool = False
    qk_norm: bool = False
    window: Literal["none", "all", "if_used", "by_layer"] = "none"
    """``if_used`` and ``by_layer``: if ``use_sliding_window`` says so."""
    theta: float = 10000.0
    experts: Literal["none", "qwen", "mixtral"] = "none"


_COMMON = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_QWEN = {**_COMMON, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28}
_QWEN_MOE = {"norm_topk_prob": False, "decoder_sparse_step": 1}

_FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family("llama", {**_COMMON, "max_position_embeddings": 2048}),
    "MistralForCausalLM": _Family(
        "mistral",
        {**_COMMON, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
        window="all",
    ),
    "Qwen2ForCausalLM": _Family(
        "qwen2", {**_QWEN, "num_key_value_heads": 32, "use_sliding_window": False}, qkv_bias=True, window="by_layer"
    ),
    "Qwen3ForCausalLM": _Family(
        "qwen3",
        {**_QWEN, "num_key_value_heads": 32, "head_dim": 128, "use_sliding_window": False},
        qk_norm=True,
        window="by_layer",
    ),
    "Qwen3MoeForCausalLM": _Family(
        "qwen3_moe",
        {**_QWEN, **_QWEN_MOE, "num_key_value_heads": 4, "use_sliding_window": False},
        qk_norm=True,
        window="if_used",
        experts="qwen",
    ),
    "MixtralForCausalLM": _Family(
        "mixtral",
        {**_COMMON, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
        window="all",
        theta=1e6,
        experts="mixtral",
    ),
}

SUPPORTED_ARCHITECTURES = tuple(_FAMILIES)


def _family(config: Mapping[str, Any]) -> tuple[str, _Family, bool]:
    """Name, family, and whether there is an output matrix."""
    if not isinstance(config, Mapping):
        raise CheckpointError(f"config.json must hold an object, not {type(config).__name__}")
    named = config.get("architectures")
    if named is None:
        by_type = {family.model_type: name for name, family in _FAMILIES.items()}
        named = [by_type.get(str(config.get("model_type")), str(config.get("model_type")))]
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise CheckpointError("config.json: architectures must be a list of class names")
    for name in named:
        generating = f"{name.removesuffix('Model')}ForCausalLM" if name.endswith("Model") else name
        if generating in _FAMILIES:
            return generating, _FAMILIES[generating], generating == name
    raise NotSupported(
        f"architecture {_brief(named[0])} is not supported; supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
    )


def _head_shapes(read: _Reader, hidden_size: int) -> tuple[int, int, int]:
    """(query heads, key/value heads, width of a head)."""
    num_heads = read.integer("num_attention_heads", 1, MAX_HEADS)
    num_kv_heads = read.optional_integer("num_key_value_heads", 1, MAX_HEADS) or num_heads
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    head_dim = read.optional_integer("head_dim", 1, MAX_HEAD_DIM)
    if head_dim is None:
        if hidden_size % num_heads:
            raise CheckpointError(
                f"config.json: hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}, "
                "and head_dim is not given"
            )
        head_dim = hidden_size // num_heads
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise CheckpointError(f"config.json: head_dim must be even and at most {MAX_HEAD_DIM}, not {head_dim}")
    return num_heads, num_kv_heads, head_dim


def _windows(read: _Reader, family: _Family, num_layers: int) -> tuple[int | None, ...]:
    if family.window == "none":
        return (None,) * num_layers
    if family.window in ("if_used", "by_layer") and not read.boolean("use_sliding_window"):
        return (None,) * num_layers
    window = read.optional_integer("sliding_window", 1, MAX_CONTEXT)
    if family.window != "by_layer" or window is None:
        return (window,) * num_layers
    layer_types = read.config.get("layer_types")
    if layer_types is None:
        num_full = read.integer("max_window_layers", 0, MAX_LAYERS)
        return tuple(None if layer < num_full else window for layer in range(num_layers))
    kinds: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != num_layers
        or not all(isinstance(kind, str) and kind in kinds for kind in layer_types)
    ):
        raise CheckpointError(
            f"config.json: layer_types must list {num_layers} of 'full_attention' or 'sliding_attention'"
        )
    return tuple(kinds[kind] for kind in layer_types)


# --- experts ----------------------------------------------------------------------------------------------


def _experts(read: _Reader, family: _Family, num_layers: int) -> ExpertsSpec | None:
    if family.experts == "none":
        return None
    counted = "num_experts" if read.config.get("num_experts") is not None else "num_local_experts"
    num_experts = read.integer(counted, 1, MAX_EXPERTS)
    num_active = read.integer("num_experts_per_tok", 1, MAX_EXPERTS)
    if num_active > num_experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {num_active} is above {counted} {num_experts}")
    if num_experts * num_layers > MAX_EXPERTS_IN_ALL:
        raise CheckpointError(
            f"config.json: {counted} {num_experts} in each of num_hidden_layers {num_layers} "
            f"is above the limit of {MAX_EXPERTS_IN_ALL} experts"
        )
    if family.experts == "mixtral":
        size = read.integer("intermediate_size", 1, MAX_INTERMEDIATE_SIZE)
        return ExpertsSpec(num_experts, num_active, size, True, tuple(range(num_layers)))
    dense = read.config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int and 0 <= layer < MAX_LAYERS for layer in dense):
        raise CheckpointError("config.json: mlp_only_layers must be a list of layers' numbers")
    step = read.integer("decoder_sparse_step", 1, MAX_LAYERS)
    return ExpertsSpec(
        num_experts,
        num_active,
        read.integer("moe_intermediate_size", 1, MAX_INTERMEDIATE_SIZE),
        read.boolean("norm_topk_prob"),
        tuple(layer for layer in range(num_layers) if (layer + 1) % step == 0 and layer not in dense),
    )


# --- rotary -----------------------------------------------------------------------------------------------


def _rope(config: Mapping[str, Any], max_context: int, theta: float) -> RopeSpec:
    """Read ``rope_parameters`` (transformers 5), or ``rope_theta`` (else ``theta``) and ``rope_scaling`` (before)."""
    section = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    scaling = config.get(section)
    if scaling is None:
        scaling = {}
    if not isinstance(scaling, Mapping):
        raise CheckpointError(f"config.json: {section} must be an object, not {type(scaling).__name__}")
    if any(isinstance(value, Mapping) for value in scaling.values()):
        raise NotSupported(f"{section} by layer type is not supported; supported: one for all layers")
    defaults = {"rope_theta": config.get("rope_theta", theta), "original_max_position_embeddings": max_context}
    read = _Reader(scaling, defaults, prefix=f"{section}.")
    theta = read.number("rope_theta", 1.0, 1e12)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    partial = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise NotSupported(f"partial_rotary_factor {_brief(partial)} is not supported; supported: 1.0")
    if kind == "default":
        return RopeSpec(theta=theta)
    if kind == "linear":
        return RopeSpec(theta=theta, kind="linear", factor=read.number("factor", 0.0, 1e6))
    if kind == "llama3":
        return _llama3_rope(read, theta)
    if kind == "yarn":
        return _yarn_rope(read, theta, max_context)
    raise NotSupported(
        f"rotary scaling {_brief(kind)} is not supported; supported: 'default', 'linear', 'llama3', 'yarn'"
    )


def _llama3_rope(read: _Reader, theta: float) -> RopeSpec:
    low, high = read.number("low_freq_factor", 0.0, 1e6), read.number("high_freq_factor", 0.0, 1e6)
    if high <= low:
        raise CheckpointError(f"config.json: {read.prefix}high_freq_factor must be above low_freq_factor")
    return RopeSpec(
        theta=theta,
        kind="llama3",
        factor=read.number("factor", 0.0, 1e6),
        original_context=read.integer("original_max_position_embeddings", 1, MAX_CONTEXT),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn_rope(read: _Reader, theta: float, max_context: int) -> RopeSpec:
    """YaRN (arXiv 2309.00071); the attention factor's default as in ``transformers``."""
    original_context = read.integer("original_max_position_embeddings", 1, MAX_CONTEXT)
    factor = read.optional_number("factor", 0.0, 1e6) or max_context / original_context
    mscale, mscale_all = read.optional_number("mscale", 0.0, 1e3), read.optional_number("mscale_all_dim", 0.0, 1e3)
    attention_factor = read.optional_number("attention_factor", 0.0, 1e3)
    if attention_factor is None and mscale and mscale_all:
        attention_factor = _yarn_scale(factor, mscale) / _yarn_scale(factor, mscale_all)
    elif attention_factor is None:
        attention_factor = _yarn_scale(factor, 1.0)
    truncate = read.config.get("truncate", True)
    return RopeSpec(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_context=original_context,
        beta_fast=read.optional_number("beta_fast", 0.0, 1e6) or 32.0,
        beta_slow=read.optional_number("beta_slow", 0.0, 1e6) or 1.0,
        attention_factor=attention_factor,
        truncate=bool(truncate),
    )


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


# --- reading fields ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reader:
    """Typed, bounded access to the fields of one JSON object; ``defaults`` says what an absent one means."""

    config: Mapping[str, Any]
    defaults: Mapping[str, Any]
    prefix: str = ""

    def _value(self, name: str) -> Any:
        if name in self.config:
            return self.config[name]
        return self.defaults.get(name)

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.optional_integer(name, low, high)
        if value is None:
            raise CheckpointError(f"config.json: {self.prefix}{name} is missing")
        return value

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        value = self._value(name)
        if value is None:
            return None
        if type(value) is not int:
            raise CheckpointError(f"config.json: {self.prefix}{name} must be an integer, not {_brief(value)}")
        if not low <= value <= high:
            raise CheckpointError(
                f"config.json: {self.prefix}{name} must be between {low} and {high}, not {_brief(value)}"
            )
        return value

    def number(self, name: str, above: float, high: float) -> float:
        value = self.optional_number(name, above, high)
        if value is None:
            raise CheckpointError(f"config.json: {self.prefix}{name} is missing")
        return value

    def optional_number(self, name: str, above: float, high: float) -> float | None:
        value = self._value(name)
        if value is None:
            return None
        if type(value) is not int and type(value) is not float:
            raise CheckpointError(f"config.json: {self.prefix}{name} must be a number, not {_brief(value)}")
        if not above < value <= high:
            raise CheckpointError(
                f"config.json: {self.prefix}{name} must be above {above:g} and at most {high:g}, not {_brief(value)}"
            )
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self._value(name)
        if value is None:
            return False
        if type(value) is not bool:
            raise CheckpointError(f"config.json: {self.prefix}{name} must be true or false, not {_brief(value)}")
        return value


def token_ids(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The token ids under ``name``: absent, one, or a list, as ``config.json`` and ``generation_config.json`` allow."""
    value = config.get(name)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if len(ids) > MAX_EOS_IDS or not all(type(i) is int and 0 <= i < MAX_VOCAB_SIZE for i in ids):
        raise CheckpointError(
            f"config.json: {name} must be a token id or a list of at most {MAX_EOS_IDS}, not {_brief(value)}"
        )
    return tuple(ids)


def _dtype_name(config: Mapping[str, Any]) -> str | None:
    value = config.get("dtype", config.get("torch_dtype"))
    return value if isinstance(value, str) else None


def _quantization(config: Mapping[str, Any]) -> str | None:
    section = config.get("quantization_config")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise CheckpointError("config.json: quantization_config must be an object")
    return str(section.get("quant_method") or section.get("quant_algo") or "unnamed")[:40]


def _brief(value: object) -> str:
    if type(value) is int and abs(value) >= 10**30:
        return "a number above 10^30 in size"
    text = repr(value) if not isinstance(value, list | dict) else type(value).__name__
    return text if len(text) <= 40 else text[:37] + "..."
