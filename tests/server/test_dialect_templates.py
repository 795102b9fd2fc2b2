"""Which dialect a chat template is taken for, and that a conversation with tools renders as in ``transformers``."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from tests.text.test_templates import SPECIAL_TOKENS, TOOL, by_transformers, sources
from tokenmill.engine.text.template import ChatTemplates
from tokenmill.server.dialects import Function, dialect_of, reasoning_of

REAL = {
    "llama.cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja": ("hermes", None),
    "llama.cpp/Qwen-Qwen2.5-7B-Instruct.jinja": ("hermes", None),
    "ollama/qwen38_chat_template.jinja": ("qwen3_coder", "think"),
    "ollama/nemotron3nano_chat_template.jinja2": ("qwen3_coder", "think"),
    "ollama/laguna_v8_chat_template.jinja2": ("glm45", "think"),
    "llama.cpp/meta-llama-Llama-3.1-8B-Instruct.jinja": ("llama3_json", None),
    "llama.cpp/meta-llama-Llama-3.2-3B-Instruct.jinja": ("llama3_json", None),
    "llama.cpp/meta-llama-Llama-3.3-70B-Instruct.jinja": ("llama3_json", None),
    "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407.jinja": ("mistral", None),
    "mistral-common/v7.jinja": ("mistral", None),
    "mistral-common/v11.jinja": ("mistral_args", None),
    "mistral-common/v13_think.jinja": ("mistral_args", "mistral"),
    "llama.cpp/llama-cpp-deepseek-r1.jinja": ("deepseek_v3", "think"),
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja": ("generic", "think"),
    "llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use.jinja": ("command_r", None),
    "llama.cpp/CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja": ("command_r7b", "command"),
    "llama.cpp/meetkai-functionary-medium-v3.1.jinja": ("function_tag", None),
    "llama.cpp/meetkai-functionary-medium-v3.2.jinja": (None, None),
    "llama.cpp/google-gemma-2-2b-it.jinja": ("generic", None),
    "llama.cpp/microsoft-Phi-3.5-mini-instruct.jinja": ("generic", None),
}
EXCERPTS = {
    "kimi_k2": "{{ tools | tojson }}<|tool_calls_section_begin|><|tool_call_begin|>{{ call.id }}",
    "deepseek_v31": "{{ tools }}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>{}",
    "granite": "<|start_of_role|>available_tools<|end_of_role|>{{ tools }} respond only with <|tool_call|> and a list",
    "phi4": "{% for tool in tools %}<|tool|>{% endfor %} use <|tool_call|>{}<|/tool_call|>",
    "harmony": "{{ tools }}<|start|>assistant<|channel|>commentary<|message|>",
    "pythonic": "{{ tools }} [func_name1(params_name1=params_value1, params_name2=params_value2...)]",
    "lfm2": "<|tool_list_start|>{{ tools }}<|tool_list_end|>",
    "minimax_m2": "{{ tools }}<minimax:tool_call><invoke name=>",
    "seed_oss": "{{ tools }}<seed:tool_call><function=a><parameter=b>",
    "nemotron": "<AVAILABLE_TOOLS>{{ tools }}</AVAILABLE_TOOLS><TOOLCALL>",
}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_aAbBcCdDeE",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Koeln", "deep": [1]}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_aAbBcCdDeE", "content": "3 degrees"},
]


@pytest.mark.parametrize("name", EXCERPTS)
def test_families_are_known_by_their_signs(name: str) -> None:
    dialect = dialect_of(EXCERPTS[name])
    assert dialect is not None
    assert dialect.name == name


def test_real_templates_are_known(shared: Path) -> None:
    found = sources(shared)
    for name, (tools, reasoning) in REAL.items():
        dialect, kind = dialect_of(found[name]), reasoning_of(found[name])
        assert (dialect and dialect.name) == tools, name
        assert (kind and kind.name) == reasoning, name


def test_conversations_with_tools_render_as_in_transformers(shared: Path) -> None:
    """A client's conversation, made ready by the dialect, gives what ``apply_chat_template`` makes of the same."""
    pytest.importorskip("transformers.utils.chat_template_utils")
    function = Function("get_weather", None, TOOL["function"]["parameters"], wire=TOOL)
    rendered = 0
    for name, source in sources(shared).items():
        dialect = dialect_of(source)
        if dialect is None or dialect.name == "generic" or "strftime_now" in source:
            continue
        messages, tools = dialect.history(copy.deepcopy(CONVERSATION), [function]), dialect.tools([function])
        expected = by_transformers(source, messages, {"tools": tools})
        if not isinstance(expected, str):
            continue
        text = ChatTemplates({"default": source}, SPECIAL_TOKENS).render(messages, tools=tools)
        assert text == expected, name
        own_roles = "assistant_tool_call" in source  # Granite 3.0 shows calls and results under roles of its own only
        assert own_roles or all(part in text for part in ("get_weather", "Koeln", "3 degrees")), name
        rendered += 1
    assert rendered > 30


def test_ids_are_made_what_a_template_wants() -> None:
    """Nine letters and digits for Mistral; the function's name and a number for Kimi."""
    for name, wanted in (("mistral", r"^[A-Za-z0-9]{9}$"), ("kimi_k2", r"^functions\.get_weather:0$")):
        dialect = dialect_of("{{ tools }}", name)
        assert dialect is not None
        _, answer, result = dialect.history(CONVERSATION, [])
        assert answer["tool_calls"][0]["id"] == result["tool_call_id"]
        assert re.match(wanted, result["tool_call_id"])
    assert CONVERSATION[1]["tool_calls"][0]["id"] == "call_aAbBcCdDeE"
