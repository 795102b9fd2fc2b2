"""Reading a shape from the content of any Hugging Face ``config.json``.

The families differ in names and in what they leave unsaid; both are data here (``ALIASES``, ``FAMILIES``), so that one
reader serves all. What is not described well enough to count raises ``NotSupported`` rather than a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokenmill.core.errors import CheckpointError, NotSupported
from tokenmill.perf.shape.fields import Fields
from tokenmill.perf.shape.layers import (
    Experts,
    Feed,
    FeedForward,
    GroupedAttention,
    Index,
    LatentAttention,
    Mixer,
    RecurrentMixer,
)
from tokenmill.perf.shape.model import Layers, ModelShape, append_layer

TEXT_SECTIONS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class Family:
    """What a family's ``config.json`` does not say."""

    gated: bool = True
    """The feed-forward part has a gate."""
    layer_norm: bool = False
    """Norms have a bias too."""
    norms: int = 2
    """Per layer."""
    biased: bool = False
    """Every matrix of a layer has a bias."""
    qkv_bias: bool = False
    qk_norm: Literal["none", "head", "width"] = "none"
    tied: bool = False
    """Output and embedding are one matrix, unless the configuration says otherwise."""
    head_bias: bool = False
    windows: Literal["none", "all", "odd", "types"] = "types"
    """Which layers have the window if there is one: all, those of even index, or those that ``layer_types`` names."""


_GEMMA = Family(norms=4, tied=True)
_GPT = Family(gated=False, layer_norm=True, biased=True, tied=True)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(windows="none"),
    "mistral": Family(windows="all"),
    "qwen": Family(qkv_bias=True, windows="none"),
    "qwen2": Family(qkv_bias=True),
    "qwen2_moe": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "qwen3_moe": Family(qk_norm="head"),
    "qwen3_next": Family(qk_norm="head"),
    "qwen3_5": Family(qk_norm="head"),
    "qwen3_5_moe": Family(qk_norm="head"),
    "qwen3_vl": Family(qk_norm="head"),
    "qwen3_vl_moe": Family(qk_norm="head"),
    "gemma": Family(tied=True),
    "gemma2": replace(_GEMMA, windows="odd"),
    "gemma3": replace(_GEMMA, qk_norm="head"),
    "gemma4": replace(_GEMMA, qk_norm="head"),
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gptj": Family(gated=False, layer_norm=True, norms=1, head_bias=True),
    "gpt_neox": Family(gated=False, layer_norm=True, biased=True),
    "phi-msft": Family(gated=False, layer_norm=True, norms=1, biased=True, head_bias=True),
    "phi": Family(gated=False, layer_norm=True, norms=1, biased=True, head_bias=True),
    "starcoder2": Family(gated=False, layer_norm=True, biased=True, tied=True, windows="all"),
    "falcon": Family(gated=False, layer_norm=True, tied=True),
    "bloom": Family(gated=False, layer_norm=True, biased=True, tied=True),
    "opt": Family(gated=False, layer_norm=True, biased=True, tied=True),
    "olmo2": Family(qk_norm="width"),
    "cohere": Family(layer_norm=False, norms=1, tied=True),
    "stablelm": Family(layer_norm=True),
    "orion": Family(layer_norm=True),
    "chatglm": Family(qkv_bias=True),
    "internlm": Family(windows="none"),
    "phi3": Family(windows="all"),
    "phimoe": Family(layer_norm=True, windows="all"),
    "mixtral": Family(windows="all"),
    "minimax_m2": Family(qk_norm="width"),
    "gpt_oss": Family(),
    "nemotron_h": Family(gated=False, norms=1),
}
PREFIXES = {"gemma3": "gemma3", "gemma4": "gemma4", "qwen3_vl_moe": "qwen3_vl_moe", "qwen3_vl": "qwen3_vl",
            "qwen3_5_moe": "qwen3_5_moe", "qwen3_5": "qwen3_5", "ministral": "llama"}  # fmt: skip
BIASED_ROUTERS = ("gpt_oss", "minimax_m2", "nemotron_h", "deepseek_v3")
LETTERS = {"mamba": "M", "moe": "E", "attention": "*", "mlp": "-"}
"""Newer files spell the letters of a hybrid's pattern out."""
NOT_COUNTED = {
    "deepseek_v4": "its compressed attention",
    "deepseek_ref": "its compressed attention",
    "kimi_k3": "its latent experts",
    "kimi_linear": "its latent experts",
    "minimax_m3": "its block-sparse attention",
    "rwkv5": "its recurrence",
    "bert": "an encoder",
}
"""Families that are known, and what of them is not modelled."""


def shape_from_config(config: Mapping[str, Any], name: str = "") -> ModelShape:
    """The shape that a ``config.json``'s content describes.

    Raises:
        CheckpointError: a field is missing, of the wrong type or out of bounds; names it.
        NotSupported: a family whose costs are not modelled; says what of it.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(f"config.json must hold an object, not {type(config).__name__}")
    outer = str(config.get("model_type", ""))
    text = next((config[key] for key in TEXT_SECTIONS if isinstance(config.get(key), Mapping)), None)
    model_type = str(text.get("model_type", outer)) if text is not None else outer
    for known in (outer, model_type):
        if known in NOT_COUNTED:
            raise NotSupported(f"costs of {known!r} models are not modelled: {NOT_COUNTED[known]}")
    fields = Fields({**config, **text} if text is not None else config)
    family = _family(model_type)
    reader = _Reader(fields, family, model_type)
    hidden, layers = fields.integer("hidden_size"), reader.layers()
    tied = fields.boolean("tie_word_embeddings", family.tied)
    learned = fields.integer("max_position_embeddings", 0) if model_type in ("gpt2", "gpt_bigcode", "opt") else 0
    return ModelShape(
        name=name or model_type,
        hidden_size=hidden,
        vocab_size=fields.integer("vocab_size"),
        layers=layers,
        tie_embeddings=tied,
        max_context=fields.integer("max_position_embeddings", 0),
        final_norms=2 if family.layer_norm else 1,
        learned_positions=learned + (2 if model_type == "opt" else 0),
        head_bias=fields.boolean("lm_head_bias", family.head_bias),
        quantization=_quantization(config),
    )


def _family(model_type: str) -> Family:
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    for prefix, name in PREFIXES.items():
        if model_type.startswith(prefix):
            return FAMILIES[name]
    return Family()


def _quantization(config: Mapping[str, Any]) -> str | None:
    section = config.get("quantization_config")
    if not isinstance(section, Mapping):
        return None
    return str(section.get("quant_algo") or section.get("quant_method") or "unnamed").lower()[:40]


class _Reader:
    """One configuration being read."""

    def __init__(self, fields: Fields, family: Family, model_type: str) -> None:
        self.fields, self.family, self.model_type = fields, family, model_type
        self.num_layers = 0 if self._pattern else fields.integer("num_hidden_layers")

    @property
    def _pattern(self) -> str | None:
        """Nemotron-H: a letter a layer. M: Mamba, E: experts, ``-``: feed-forward, ``*``: attention."""
        found = self.fields.get("hybrid_override_pattern")
        if isinstance(found, str):
            return found
        words = self.fields.get("layers_block_type")
        return "".join(LETTERS.get(str(word), "?") for word in words) if isinstance(words, list) else None

    def layers(self) -> tuple[Layers, ...]:
        runs: list[Layers] = []
        vectors = self.family.norms * (2 if self.family.layer_norm else 1)
        if self._pattern:
            for letter in self._pattern:
                append_layer(runs, *self._of_letter(letter), norms=vectors)
            return tuple(runs)
        blocks = self.fields.get("block_configs")
        if isinstance(blocks, list):
            for block in blocks:
                append_layer(runs, *self._of_block(block), norms=vectors)
            return tuple(runs)
        for index in range(self.num_layers):
            append_layer(runs, self._mixer(index), self._feed(index), norms=vectors)
        return tuple(runs)

    # ---- mixers --------------------------------------------------------------------------------------------

    def _mixer(self, index: int) -> Mixer:
        kind = self._layer_type(index)
        if kind == "linear_attention":
            return self._delta()
        if self.fields.get("kv_lora_rank") is not None:
            return self._latent()
        windowed = kind == "sliding_attention"
        return self._grouped(self._window() if windowed else None, windowed=windowed)

    def _layer_type(self, index: int) -> str:
        types = self.fields.get("layer_types")
        if isinstance(types, list):
            if len(types) < self.num_layers:
                raise CheckpointError(f"config.json: layer_types lists {len(types)} of {self.num_layers} layers")
            return str(types[index])
        pattern = self.fields.get("hybrid_layer_pattern")
        if isinstance(pattern, list) and len(pattern) >= self.num_layers:
            return "sliding_attention" if pattern[index] else "full_attention"
        every = self.fields.optional("full_attention_interval")
        if every:
            return "full_attention" if (index + 1) % every == 0 else "linear_attention"
        every = self.fields.optional("sliding_window_pattern")
        if every and self._window():
            return "full_attention" if (index + 1) % every == 0 else "sliding_attention"
        return "sliding_attention" if self._window() and self._is_windowed(index) else "full_attention"

    def _is_windowed(self, index: int) -> bool:
        if self.fields.get("use_sliding_window") is False:
            return False
        if self.family.windows == "odd":
            return index % 2 == 0
        if self.family.windows == "types":
            after = self.fields.optional("max_window_layers")
            return after is not None and index >= after
        return self.family.windows == "all"

    def _window(self) -> int | None:
        return self.fields.optional("sliding_window")

    def _grouped(self, window: int | None, *, windowed: bool = False) -> GroupedAttention:
        fields, family = self.fields, self.family
        heads = fields.integer("num_attention_heads")
        kv = fields.optional("num_key_value_heads") or self._implied_kv_heads(heads)
        dim = fields.optional("head_dim") or self._divided(heads)
        value_dim = fields.optional("v_head_dim") or dim
        if windowed and fields.optional("swa_num_key_value_heads"):
            heads, kv = fields.integer("swa_num_attention_heads"), fields.integer("swa_num_key_value_heads")
            dim, value_dim = fields.integer("swa_head_dim"), fields.integer("swa_v_head_dim")
        if not windowed and fields.optional("global_head_dim"):
            dim = value_dim = fields.integer("global_head_dim")
            kv = fields.optional("num_global_key_value_heads") or kv
        if heads % kv:
            raise CheckpointError(
                f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv}"
            )
        biased = fields.boolean("attention_bias", False) or fields.boolean("use_bias", False) or family.biased
        biased = biased and self.model_type != "nemotron_h"
        return GroupedAttention(
            heads,
            kv,
            dim,
            value_dim,
            window,
            qkv_bias=biased or family.qkv_bias or fields.boolean("add_qkv_bias", False),
            out_bias=biased,
            qk_norm=family.qk_norm if fields.boolean("use_qk_norm", True) else "none",
            gated=fields.boolean("attn_output_gate", self.model_type == "qwen3_next"),
            keys_are_values=not windowed and fields.boolean("attention_k_eq_v", False),
            sinks=self.model_type == "gpt_oss",
        )

    def _implied_kv_heads(self, heads: int) -> int:
        if self.fields.get("multi_query") is True:
            return 1
        return self.fields.optional("multi_query_group_num") or heads

    def _divided(self, heads: int) -> int:
        hidden = self.fields.integer("hidden_size")
        if hidden % heads:
            raise CheckpointError(
                f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}, "
                "and head_dim is not given"
            )
        return hidden // heads

    def _latent(self) -> LatentAttention:
        fields = self.fields
        index = None
        if fields.optional("index_topk"):
            index = Index(
                fields.integer("index_n_heads"), fields.integer("index_head_dim"), fields.integer("index_topk")
            )
        return LatentAttention(
            num_heads=fields.integer("num_attention_heads"),
            kv_rank=fields.integer("kv_lora_rank"),
            nope_dim=fields.integer("qk_nope_head_dim"),
            rope_dim=fields.integer("qk_rope_head_dim"),
            value_dim=fields.integer("v_head_dim"),
            q_rank=fields.optional("q_lora_rank"),
            index=index,
        )

    def _delta(self) -> RecurrentMixer:
        fields = self.fields
        return RecurrentMixer(
            "delta",
            fields.integer("linear_num_key_heads"),
            fields.integer("linear_key_head_dim"),
            fields.integer("linear_num_value_heads"),
            fields.integer("linear_value_head_dim"),
            fields.integer("linear_conv_kernel_dim", 4),
        )

    def _mamba(self) -> RecurrentMixer:
        fields = self.fields
        return RecurrentMixer(
            "mamba",
            fields.integer("n_groups"),
            fields.integer("ssm_state_size"),
            fields.integer("mamba_num_heads"),
            fields.integer("mamba_head_dim"),
            fields.integer("conv_kernel", 4),
        )

    def _of_letter(self, letter: str) -> tuple[Mixer | None, Feed | None]:
        if letter == "M":
            return self._mamba(), None
        if letter == "*":
            return self._grouped(None), None
        if letter == "E":
            return None, self._experts()
        if letter == "-":
            return None, self._dense()
        raise CheckpointError(f"config.json: hybrid_override_pattern has the unknown letter {letter!r}")

    def _of_block(self, block: Any) -> tuple[Mixer | None, Feed | None]:
        """Nemotron-NAS: every layer says what it has; sizes are multiples of the model's."""
        if not isinstance(block, Mapping):
            raise CheckpointError("config.json: block_configs must list objects")
        attention, ffn = block.get("attention") or {}, block.get("ffn") or {}
        hidden, heads = self.fields.integer("hidden_size"), self.fields.integer("num_attention_heads")
        mixer: Mixer | None = None
        if attention.get("replace_with_linear") or ffn.get("replace_with_linear"):
            raise NotSupported("block_configs with replace_with_linear are not modelled")
        if not attention.get("no_op"):
            group = attention.get("n_heads_in_group")
            if type(group) is not int or group < 1 or heads % group:
                raise CheckpointError("config.json: block_configs: n_heads_in_group must divide num_attention_heads")
            dim = hidden // heads
            mixer = GroupedAttention(heads, heads // group, dim, dim)
        if ffn.get("no_op"):
            return mixer, None
        multiple = ffn.get("ffn_mult")
        if not isinstance(multiple, int | float) or isinstance(multiple, bool) or not 0 < multiple < 64:
            raise CheckpointError("config.json: block_configs: ffn_mult must be a number above 0")
        return mixer, FeedForward(-(-int(2 * multiple * hidden / 3) // 256) * 256)

    # ---- feed-forward --------------------------------------------------------------------------------------

    def _feed(self, index: int) -> Feed:
        if self.fields.optional("num_experts") and self._has_experts(index):
            return self._experts()
        return self._dense()

    def _has_experts(self, index: int) -> bool:
        fields = self.fields
        if index < (fields.optional("first_k_dense_replace") or 0):
            return False
        frequency = fields.get("moe_layer_freq")
        if isinstance(frequency, list):
            return bool(index < len(frequency) and frequency[index])
        step = frequency if isinstance(frequency, int) else None
        step = step or fields.optional("decoder_sparse_step") or 1
        dense = fields.get("mlp_only_layers")
        if isinstance(dense, list) and index in dense:
            return False
        interleave = fields.optional("interleave_moe_layer_step") or 1
        if interleave > 1:
            return index % interleave == interleave - 1
        return index % step == 0 if isinstance(frequency, int) else (index + 1) % step == 0

    def _dense(self) -> FeedForward:
        fields, family = self.fields, self.family
        hidden = fields.integer("hidden_size")
        size = fields.optional("dense_intermediate_size") or fields.optional("intermediate_size_mlp")
        size = size or fields.optional("intermediate_size") or 4 * hidden
        if self.model_type == "qwen":  # counts both halves of the gate
            size //= 2
        biased = family.biased or fields.boolean("mlp_bias", False) or fields.boolean("use_bias", False)
        biased = biased or self.model_type == "gptj"
        return FeedForward(size, family.gated, biased and self.model_type != "nemotron_h")

    def _experts(self) -> Experts:
        fields = self.fields
        size = fields.optional("moe_intermediate_size") or fields.integer("intermediate_size")
        shared = fields.optional("moe_shared_expert_intermediate_size") or fields.optional("shared_size")
        if shared is None:
            shared = (fields.optional("n_shared_experts") or 0) * size
        if self.model_type.startswith("llama4"):
            shared = fields.integer("intermediate_size")
        return Experts(
            num_experts=fields.integer("num_experts"),
            top_k=fields.integer("num_experts_per_tok"),
            intermediate_size=size,
            shared_size=shared,
            shared_gate=self.model_type.startswith(("qwen2_moe", "qwen3_next", "qwen3_5")),
            gated=self.family.gated,
            biased=self.model_type == "gpt_oss",
            router_bias=self.model_type in BIASED_ROUTERS or fields.get("topk_method") == "noaux_tc",
            latent=fields.optional("moe_latent_size"),
            dense=self._dense() if fields.boolean("enable_moe_block", False) else None,
        )
