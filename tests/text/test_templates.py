"""Chat templates render as ``transformers`` renders them, for every template at hand; hostile ones are stopped."""

from __future__ import annotations

import copy
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tokenmill.core.errors import CheckpointError, InvalidRequest
from tokenmill.engine.text import TextCodec
from tokenmill.engine.text.template import ChatTemplates

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
NOW = datetime(2024, 7, 26, 1, 2, 3)

USER = {"role": "user", "content": "Hi  there "}
ANSWER = {"role": "assistant", "content": " Hello!\n"}
SYSTEM = {"role": "system", "content": "You are <kind> & 'brief'."}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather <b>now</b> & "later"',
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "é"}}},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": '{"t": 3}'}
PARTS = [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "what?"}]

CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one": ([USER], {}),
    "system": ([SYSTEM, USER], {}),
    "turns": ([SYSTEM, USER, ANSWER, {"role": "user", "content": "再见 😶‍🌫️"}], {}),
    "no_prompt": ([USER, ANSWER], {"add_generation_prompt": False}),
    "tools": ([SYSTEM, USER], {"tools": [TOOL]}),
    "tool_call": ([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT], {"tools": [TOOL]}),
    "reasoning": ([USER, {"role": "assistant", "content": "ok", "reasoning_content": "hm\nm"}, USER], {}),
    "parts": ([{"role": "user", "content": PARTS}], {}),
    "wrong_order": ([ANSWER, ANSWER], {}),
    "continued": (
        [USER, {"role": "assistant", "content": "It is "}],
        {"add_generation_prompt": False, "continue_final_message": True},
    ),
    "switch": ([USER], {"extra": {"enable_thinking": False}}),
}


def sources(shared: Path) -> dict[str, str]:
    """Every chat template in the shared data, by file."""
    folder = shared / "data" / "tokenizers" / "chat_templates"
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".jinja", ".jinja2"):
            found[name] = path.read_text()
        elif path.name.endswith("tokenizer_config.json"):
            template = json.loads(path.read_text()).get("chat_template")
            entries = template if isinstance(template, list) else [{"name": "", "template": template}]
            found |= {f"{name}{entry['name']}": entry["template"] for entry in entries if entry["template"]}
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text().splitlines()):
                found |= {f"{name}:{number}{key}": value for key, value in json.loads(line).items()}
    return found


def by_transformers(source: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> str | Exception:
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{k: v for k, v in message.items() if v is not None} for message in copy.deepcopy(messages)]
    options = {"add_generation_prompt": True, **options}
    extra = options.pop("extra", {})
    try:
        rendered, _ = render_jinja_template([chat], chat_template=source, **options, **extra, **SPECIAL_TOKENS)
    except Exception as error:  # noqa: BLE001 (whatever it raises is what is compared)
        return error
    return str(rendered[0])


def test_every_template_renders_as_in_transformers(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("transformers.utils.chat_template_utils")

    class Today(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return NOW

    monkeypatch.setattr(module, "datetime", Today)
    compared = refused = 0
    for name, source in sources(shared).items():
        templates = ChatTemplates({"default": source}, SPECIAL_TOKENS, now=lambda: NOW)
        for case, (messages, options) in CONVERSATIONS.items():
            expected = by_transformers(source, messages, options)
            if isinstance(expected, str):
                assert templates.render(copy.deepcopy(messages), **options) == expected, (name, case)
                compared += 1
            else:
                with pytest.raises(InvalidRequest) as caught:
                    templates.render(copy.deepcopy(messages), **options)
                assert caught.value.param == "messages"
                refused += 1
    assert compared > 1000 and refused > 100


def test_what_a_template_refuses_is_the_clients_mistake() -> None:
    templates = ChatTemplates({"default": "{{ raise_exception('roles must alternate') }}"}, {})
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        templates.render([USER])
    assert caught.value.param == "messages"


def test_tools_choose_their_own_template() -> None:
    templates = ChatTemplates({"default": "plain", "tool_use": "with tools"}, {})
    assert templates.render([USER]) == "plain"
    assert templates.render([USER], tools=[TOOL]) == "with tools"


def test_without_a_template_a_chat_is_refused_with_the_remedy() -> None:
    templates = ChatTemplates({}, {})
    assert not templates
    with pytest.raises(InvalidRequest, match="/v1/completions") as caught:
        templates.render([USER])
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {}),
        (["hi"], {}),
        ([USER], {"continue_final_message": True}),
        ([USER], {"extra": {"messages": []}}),
        ([{"role": "user"}], {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
def test_impossible_requests(messages: Any, options: dict[str, Any], story: TextCodec) -> None:
    with pytest.raises(InvalidRequest):
        story.render_chat(messages, **options)


def test_a_broken_template_names_its_line() -> None:
    with pytest.raises(CheckpointError, match="line 2"):
        ChatTemplates({"default": "ok\n{% if %}"}, {})


def test_the_generation_tag_shows_its_body() -> None:
    templates = ChatTemplates({"default": "a{% generation %}b{% endgeneration %}c"}, {})
    assert templates.render([USER]) == "abc"


def doubling(start: str, step: str, end: str = "", times: int = 60) -> str:
    """A template that applies ``step`` to a variable again and again."""
    loop = "{% for i in range(" + str(times) + ") %}{% set ns.v = " + step + " %}{% endfor %}"
    return "{% set ns = namespace(v=" + start + ") %}" + loop + end


HOSTILE = {
    "repeat": "{{ 'a' * 1000000000 }}",
    "repeat_list": "{{ ([1] * 1000000000) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": doubling("3", "ns.v * ns.v"),
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops_over_lists": "{% set l = range(99999) | list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "doubling_concat": doubling("'ab'", "ns.v ~ ns.v"),
    "doubling_sum": doubling("'ab'", "ns.v + ns.v"),
    "doubling_join": doubling("'ab'", "[ns.v, ns.v] | join"),
    "doubling_list": doubling("[1]", "[ns.v, ns.v]", "{{ ns.v }}"),
    "doubling_json": doubling("[1]", "[ns.v, ns.v]", "{{ ns.v | tojson }}"),
    "replace": doubling("'a'", "ns.v.replace('a', 'aa')"),
    "replace_filter": doubling("'a'", "ns.v | replace('a', 'aa')"),
    "center": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "indent": "{{ ('\n' * 100000) | indent(100000) }}",
    "format_width": "{{ '%1000000000d' % 1 }}",
    "format_method": "{{ '{:1000000000}'.format(1) }}",
    "format_filter": "{{ '%*d' | format(1000000000, 1) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'a' * 100000}) }}",
    "macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "macro_tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "literals": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "captured": "{% for i in range(99999) %}{% set s %}" + "x" * 10_000 + "{% endset %}{% endfor %}",
    "escape": "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "append": "{{ messages.append(1) }}",
    "lipsum": "{{ lipsum(100000) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon_with_an_error(name: str) -> None:
    """MF-06: a model file must not burn the server's time or memory."""
    templates = ChatTemplates({"default": HOSTILE[name]}, {})
    start = time.thread_time()
    with pytest.raises(InvalidRequest):
        templates.render([USER])
    assert time.thread_time() - start < 20


def test_an_honest_template_has_budget_enough(story: TextCodec) -> None:
    """A conversation of 2000 turns and 2 MB."""
    turns = [{"role": role, "content": "word " * 100} for role in ("user", "assistant")] * 2000
    assert len(story.render_chat(turns)) > 2_000_000
