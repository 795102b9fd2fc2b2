"""What models of each family write, in the format that their makers published; and what a reader makes of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tokenmill.engine.text import TextCodec
from tokenmill.engine.text.checkpoint import TextFiles
from tokenmill.server.dialects import DIALECTS, Function
from tokenmill.server.dialects.reasoning import REASONINGS, Reasoning
from tokenmill.server.turn import Piece, ToolWishes, Turn

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where"},
        "days": {"type": "integer", "minimum": 0},
        "hot": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
    "additionalProperties": False,
}
EMPTY: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS = (Function("get_weather", "The weather", WEATHER), Function("now", None, EMPTY))
BY_NAME = {reasoning.name: reasoning for reasoning in REASONINGS}


@dataclass(frozen=True)
class Example:
    """``text`` as a model writes it, and its parts."""

    dialect: str
    text: str
    calls: tuple[tuple[str, str], ...]
    content: str = ""
    reasoning: str = ""
    kind: Reasoning | None = None
    begun: bool = False
    """The prompt has begun the reasoning."""
    by_grammar: bool = True
    """The grammar lets the model write it just so."""
    spells_markers: bool = False
    """It holds markers where they mean nothing, so they are no special tokens there."""


PARIS = ("get_weather", '{"city": "Paris"}')
PARIS_2 = ("get_weather", '{"city": "Paris", "days": 2}')
NOW = ("now", "{}")
ODD = ("get_weather", '{"city": "a \\"}</tool_call> \\u00e9 {[", "tags": ["x", "]"]}')
LINES = ("get_weather", '{"city": "first\\n\\n  \\"second\\"", "days": 2, "tags": ["a", "b"]}')
THINK = BY_NAME["think"]

EXAMPLES = (
    Example("hermes", f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS[1]}}}\n</tool_call>', (PARIS,)),
    Example(
        "hermes",
        f'Let me see.\n\n<tool_call>\n{{"name": "get_weather", "arguments": {ODD[1]}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        (ODD, NOW),
        "Let me see.",
        by_grammar=False,
    ),
    Example(
        "hermes",
        'Let me see.\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS_2[1]}}}\n</tool_call>',
        (NOW, PARIS_2),
        "Let me see.",
    ),
    Example(
        "hermes",
        f'<think>\nHm, <tool_call>?\n</think>\n\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS[1]}}}\n'
        "</tool_call>",
        (PARIS,),
        reasoning="Hm, <tool_call>?",
        kind=THINK,
        spells_markers=True,
    ),
    Example("hermes", '{"arguments": {"a": 1}, "name": "now"}', (), '{"arguments": {"a": 1}, "name": "now"}'),
    Example(
        "hermes",
        '<tool_call> {"arguments" : {"city":"Paris"} , "id": [1, {"x": "}"}], "name":"get_weather"}</tool_call>',
        (("get_weather", '{"city":"Paris"}'),),
        by_grammar=False,
    ),
    Example(
        "hermes", '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}', (("now", '{"a": 1}'),), by_grammar=False
    ),
    Example("generic", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', (NOW,)),
    Example("llama3_json", f'{{"name": "get_weather", "parameters": {PARIS[1]}}}', (PARIS,)),
    Example(
        "llama3_json",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {PARIS[1]}}}; {{"name": "now", "parameters": {{}}}}',
        (PARIS, NOW),
        by_grammar=False,
    ),
    Example("llama3_json", '{"answer": 42}', (), '{"answer": 42}', by_grammar=False),
    Example("pythonic", '[get_weather(city="Paris", days=2), now()]', (PARIS_2, NOW)),
    Example(
        "pythonic",
        "[get_weather(city='it\\'s \"x\"', hot=True, tags=['a', 'b',])]",
        (("get_weather", '{"city": "it\'s \\"x\\"", "hot": true, "tags": ["a", "b"]}'),),
        by_grammar=False,
    ),
    Example("pythonic", "[1, 2] is a list", (), "[1, 2] is a list", by_grammar=False),
    Example("lfm2", '<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>', (PARIS,)),
    Example(
        "mistral",
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {PARIS[1]}}}, {{"name": "now", "arguments": {{}}}}]',
        (PARIS, NOW),
    ),
    Example(
        "mistral_args", f"Yes.[TOOL_CALLS]get_weather[ARGS]{PARIS[1]}[TOOL_CALLS]now[ARGS]{{}}", (PARIS, NOW), "Yes."
    ),
    Example(
        "mistral_args",
        f"[THINK]Well.[/THINK][TOOL_CALLS]get_weather[ARGS]{PARIS[1]}",
        (PARIS,),
        reasoning="Well.",
        kind=BY_NAME["mistral"],
    ),
    Example(
        "deepseek_v3",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{PARIS[1]}\n```"
        "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        (PARIS, NOW),
    ),
    Example(
        "deepseek_v31",
        f"I see.</think>Now:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS[1]}"
        "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        (PARIS, NOW),
        "Now:",
        "I see.",
        THINK,
        begun=True,
    ),
    Example(
        "kimi_k2",
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{PARIS[1]}"
        "<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        (PARIS, NOW),
    ),
    Example(
        "granite",
        f'<|tool_call|>[{{"name": "get_weather", "arguments": {PARIS[1]}}}, {{"name": "now", "arguments": {{}}}}]',
        (PARIS, NOW),
    ),
    Example(
        "granite",
        "Here is my thought process: It rains. Here is my response: Take a coat.",
        (),
        "Take a coat.",
        "It rains.",
        BY_NAME["granite"],
    ),
    Example("phi4", f'<|tool_call|>[{{"name": "get_weather", "arguments": {PARIS[1]}}}]<|/tool_call|>', (PARIS,)),
    Example(
        "phi4",
        f'<|tool_call|>{{"name": "get_weather", "arguments": {PARIS[1]}}}<|/tool_call|>',
        (PARIS,),
        by_grammar=False,
    ),
    Example("nemotron", '<TOOLCALL>[{"name": "now", "arguments": {}}]</TOOLCALL>', (NOW,)),
    Example(
        "command_r7b",
        "<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>\n"
        f'[{{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {PARIS[1]}}}]\n<|END_ACTION|>',
        (PARIS,),
        reasoning="I look.",
        kind=BY_NAME["command"],
    ),
    Example("command_r", 'Action:\n```json\n[{"tool_name": "now", "parameters": {}}]\n```', (NOW,)),
    Example("function_tag", f"<function=get_weather>{PARIS[1]}</function><function=now>{{}}</function>", (PARIS, NOW)),
    Example(
        "qwen3_coder",
        'Well:\n<tool_call>\n<function=get_weather>\n<parameter=city>\nfirst\n\n  "second"\n</parameter>\n'
        '<parameter=days>\n2\n</parameter>\n<parameter=tags>\n["a", "b"]\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        (LINES, NOW),
        "Well:",
    ),
    Example(
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=hot>\nTrue\n"
        "</parameter>\n</function>\n</tool_call>",
        (("get_weather", '{"city": "Paris", "hot": true}'),),
        by_grammar=False,
    ),
    Example(
        "glm45",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        (PARIS_2, NOW),
    ),
    Example(
        "minimax_m2",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        (PARIS,),
    ),
    Example(
        "seed_oss",
        "<seed:think>So.</seed:think><seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
        "</function>\n</seed:tool_call>",
        (PARIS,),
        reasoning="So.",
        kind=BY_NAME["seed"],
    ),
    Example(
        "harmony",
        "<|channel|>analysis<|message|>They ask for weather.<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.get_weather <|constrain|>json<|message|>{PARIS[1]}",
        (PARIS,),
        reasoning="They ask for weather.",
        kind=BY_NAME["harmony"],
    ),
    Example(
        "harmony",
        "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>Hello!",
        (),
        "Hello!",
        "Easy.",
        BY_NAME["harmony"],
    ),
)

IDS = [f"{example.dialect}-{index}" for index, example in enumerate(EXAMPLES)]
SPECIAL = sorted(
    {
        marker
        for name, dialect in DIALECTS.items()
        for marker in dialect.markers
        if name not in ("qwen3_coder", "seed_oss", "minimax_m2", "command_r", "nemotron", "function_tag")
    }
    | {"<think>", "</think>", "[THINK]", "[/THINK]", "<|START_THINKING|>", "<|END_THINKING|>"}
)
"""Markers that are single tokens of their models' vocabularies."""


def byte_codec(special: Iterable[str] = (), template: str = "") -> TextCodec:
    """A codec with a token per byte, and the special tokens ``<|end_of_text|>`` (the end) and ``special``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<|end_of_text|>", *special)]
    )
    end = tokenizer.token_to_id("<|end_of_text|>")
    templates = {"default": template} if template else {}
    return TextCodec(TextFiles(tokenizer, {"type": "ByteLevel"}, {}, frozenset({end}), templates))


def turn_for(
    example: Example, codec: TextCodec, functions: Sequence[Function] = FUNCTIONS, **wishes: Any
) -> tuple[Turn, list[int]]:
    """The turn that ``example`` answers, and its prompt's tokens."""
    turn = Turn(codec, ToolWishes(tuple(functions), **wishes), DIALECTS[example.dialect], example.kind, None)
    opening = example.kind.opening if example.kind is not None and example.begun else ""
    return turn, codec.encode("Question" + opening)


def read(example: Example, parts: Iterable[str], codec: TextCodec) -> list[Piece]:
    """The pieces of a text that comes in ``parts``."""
    turn, prompt = turn_for(example, codec)
    parser = turn.parser(prompt)
    pieces = [piece for part in parts for piece in parser.push(part)]
    return pieces + parser.finish()


def cut_at(text: str, places: Iterable[int]) -> list[str]:
    """``text`` in parts."""
    ends = [0, *sorted(places), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


def random_cuts(text: str, draw: random.Random) -> list[str]:
    return cut_at(text, draw.sample(range(len(text) + 1), k=draw.randint(0, min(12, len(text)))))


@dataclass
class Parts:
    """A whole turn, put together from its pieces."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    """Of the pieces, in order; several of one kind in a row count once."""


def joined(pieces: Iterable[Piece]) -> Parts:
    """Put together, after checking that begins, arguments and ends come in order and are numbered."""
    parts = Parts()
    is_open = False
    for piece in pieces:
        if piece.kind == "tool_begin":
            assert not is_open
            assert piece.index == len(parts.calls)
            assert piece.id.startswith("call_")
            parts.calls.append((piece.name, ""))
            is_open = True
        elif piece.kind == "tool_arguments":
            assert is_open
            assert piece.index == len(parts.calls) - 1
            name, arguments = parts.calls[-1]
            parts.calls[-1] = name, arguments + piece.text
        elif piece.kind == "tool_end":
            assert is_open
            is_open = False
        elif piece.kind == "content":
            parts.content += piece.text
        else:
            parts.reasoning += piece.text
        if parts.kinds[-1:] != [piece.kind]:
            parts.kinds.append(piece.kind)
    assert not is_open
    return parts
