"""Tools and reasoning over HTTP: what a model writes becomes what OpenAI's API says of it (AC-05, ST-08)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from tests.server.dialect_examples import byte_codec
from tests.server.scripted import ScriptedExecutor
from tests.server.support import Running, error_of, events, running_server
from tokenmill.core.params import SamplingParams
from tokenmill.engine.faults import Fault, armed
from tokenmill.server.settings import ServerSettings

TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>"
    "write <tool_call>...</tool_call>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|other|>")
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where <b>é</b>"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
PARIS = '{"city": "Paris é", "days": 2}'
ANSWERS = {
    "plain": "Just text. ",
    "one": f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>',
    "three": f'Sure.\n\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>{"name": "now"}</tool_call>',
    "two": f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "thoughtful": '<think>\nHm ünd so.\n</think>\n\nWell.<tool_call>{"name": "now", "arguments": {}}</tool_call>',
    "reasoned": "<think>It is so.</think>\n\nIt is.",
    "broken": '<tool_call>{"nome": 1}</tool_call> and on',
    "other": "a<|other|>b",
}


@contextmanager
def served(
    script: Callable[[str], str], template: str = TEMPLATE, special: Iterable[str] = SPECIAL, **settings: Any
) -> Iterator[Running]:
    codec = byte_codec(special, template)
    make = partial(ScriptedExecutor, codec=codec, script=script)
    options = ServerSettings(port=0, **settings)
    with running_server(options, codec=codec, executor_class=make, max_context=4096, num_blocks=1024) as running:
        yield running


def by_question(prompt: str) -> str:
    """The answer that the last message names."""
    question = prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    return ANSWERS.get(question, question)


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with served(by_question) as running:
        yield running


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    yield shared
    shared.wait_idle(5.0)


def ask(server: Running, question: str, **more: Any) -> dict[str, Any]:
    response = server.post("/v1/chat/completions", body_of(server, question, **more))
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def body_of(server: Running, question: str, **more: Any) -> dict[str, Any]:
    fields = {"messages": [{"role": "user", "content": question}], "tools": TOOLS, "max_tokens": 1000, **more}
    return server.chat(**{name: value for name, value in fields.items() if value is not None})


def stream(server: Running, question: str, **more: Any) -> list[Any]:
    body = body_of(server, question, stream=True, **more)
    return events(server.post("/v1/chat/completions", body).text)


def put_together(chunks: list[Any]) -> list[dict[str, Any]]:
    """The messages of a stream, by index; checks that ids and names come once and that every delta has its index."""
    messages: dict[int, dict[str, Any]] = {}
    ended: set[int] = set()
    for choice in (choice for chunk in chunks[:-1] for choice in chunk["choices"]):
        index, delta = choice["index"], choice["delta"]
        assert index not in ended
        message = messages.setdefault(index, {"content": None, "calls": []})
        for name in ("content", "reasoning_content"):
            if delta.get(name) is not None:
                message[name] = (message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["calls"])
                assert call["type"] == "function"
                message["calls"].append([call["id"], call["function"]["name"], ""])
            else:
                assert set(call) == {"index", "function"}
                assert set(call["function"]) == {"arguments"}
            message["calls"][call["index"]][2] += call["function"]["arguments"]
        if choice["finish_reason"] is not None:
            message["finish_reason"] = choice["finish_reason"]
            ended.add(index)
    assert chunks[-1] == "[DONE]"
    assert ended == set(messages)
    return [messages[index] for index in sorted(messages)]


@pytest.mark.parametrize("question", sorted(ANSWERS))
def test_ac05_streamed_and_whole_are_the_same(server: Running, question: str) -> None:
    """AC-05: ids and names once, an index on every delta, arguments that join to the JSON, finish tool_calls."""
    choice = ask(server, question)["choices"][0]
    (streamed,) = put_together(stream(server, question))
    message = choice["message"]
    assert streamed["content"] == (message["content"] or None)
    assert streamed.get("reasoning_content") == message.get("reasoning_content")
    made = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    assert [(name, arguments) for _, name, arguments in streamed["calls"]] == made
    assert streamed["finish_reason"] == choice["finish_reason"] == ("tool_calls" if made else "stop")
    ids = [call_id for call_id, _, _ in streamed["calls"]]
    assert len(set(ids)) == len(ids)
    assert all(call_id.startswith("call_") for call_id in ids)


def test_what_the_messages_hold(server: Running) -> None:
    def message(question: str, **more: Any) -> dict[str, Any]:
        made: dict[str, Any] = ask(server, question, **more)["choices"][0]["message"]
        return made

    assert message("plain") == {"role": "assistant", "content": "Just text. ", "refusal": None}
    one = message("one")
    assert one["content"] is None
    assert [call["function"] for call in one["tool_calls"]] == [{"name": "get_weather", "arguments": PARIS}]
    assert message("three")["content"] == "Sure."
    assert len(message("three")["tool_calls"]) == 3
    thoughtful = message("thoughtful")
    assert (thoughtful["reasoning_content"], thoughtful["content"]) == ("Hm ünd so.", "Well.")
    assert "reasoning_content" not in message("thoughtful", include_reasoning=False)
    assert message("thoughtful", include_reasoning=False)["content"] == "Well."
    assert message("broken")["content"] == '<tool_call>{"nome": 1}</tool_call> and on'
    assert message("other")["content"] == "ab", "other special tokens stay out of the text"
    assert message("other", skip_special_tokens=False)["content"] == "a<|other|>b"


def test_st08_choices_with_tools_and_logprobs(server: Running) -> None:
    """ST-08: n = 4 streamed with logprobs and tools: one finish each, joined the same as whole."""
    answers = iter([ANSWERS[name] for name in ("one", "plain", "three", "reasoned")] * 2)
    with served(lambda prompt: next(answers)) as own:
        whole = ask(own, "x", n=4, logprobs=True)
        chunks = stream(own, "x", n=4, logprobs=True)
        for choice, message in zip(whole["choices"], put_together(chunks), strict=True):
            assert message["content"] == (choice["message"]["content"] or None)
            assert message.get("reasoning_content") == choice["message"].get("reasoning_content")
            made = choice["message"].get("tool_calls", ())
            assert [arguments for *_, arguments in message["calls"]] == [c["function"]["arguments"] for c in made]
            assert message["finish_reason"] == choice["finish_reason"]
            entries = [
                entry
                for chunk in chunks[:-1]
                for part in chunk["choices"]
                if part["index"] == choice["index"] and part["logprobs"]
                for entry in part["logprobs"]["content"]
            ]
            assert entries == choice["logprobs"]["content"]
            assert len(entries) > 10
        own.wait_idle(5.0)


def test_reasoning_tokens_are_in_the_usage(server: Running) -> None:
    usage = ask(server, "reasoned")["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len("It is so.") + 2}
    chunks = stream(server, "reasoned", stream_options={"include_usage": True})
    assert chunks[-2]["usage"] == usage
    assert ask(server, "plain")["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_a_required_call_that_is_cut_off_before_its_name_leaves_nothing_in_the_content(server: Running) -> None:
    """The text is held to calls: an opening whose rest is missing was to be one. In ``auto`` it may be text."""
    first = len(ANSWERS["two"].partition("</tool_call>")[0].replace("<tool_call>", "_").encode()) + 1
    for max_tokens in (2, 9, *range(first, first + 20, 3)):  # within the first call's opening; within the second's
        choice = ask(server, "two", max_tokens=max_tokens, tool_choice="required")["choices"][0]
        assert choice["finish_reason"] == "length"
        assert not choice["message"]["content"]
        assert len(choice["message"].get("tool_calls") or ()) == (max_tokens >= first)
        chunks = stream(server, "two", max_tokens=max_tokens, tool_choice="required")
        assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1])
    cut = ask(server, "two", max_tokens=first + 9)["choices"][0]["message"]
    assert cut["content"].startswith("<tool_call>")


def test_a_developer_is_a_system_to_a_template_that_knows_none() -> None:
    for template, role in ((TEMPLATE, "system"), (TEMPLATE + "{# developer #}", "developer")):
        with served(lambda prompt: "Yes.", template) as own:
            messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Well?"}]
            answer = own.post("/v1/chat/completions", own.chat(messages=messages))
            assert answer.status_code == 200
            assert isinstance(own.executor, ScriptedExecutor)
            assert f"{role}\nBe brief." in own.executor.prompts[-1]


def test_an_answer_that_is_cut_off_says_so(server: Running) -> None:
    choice = ask(server, "one", max_tokens=60)["choices"][0]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert PARIS.startswith(call["function"]["arguments"])
    assert call["function"]["arguments"] != PARIS


def test_tools_and_results_reach_the_template(server: Running) -> None:
    """Unchanged: schemas, results; the arguments of earlier calls as the object that they are."""
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": PARIS}},
        {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}},
    ]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"t": 3}'},
        {"role": "user", "content": "plain"},
    ]
    ask(server, "", messages=messages)
    executor = server.executor
    assert isinstance(executor, ScriptedExecutor)
    prompt = executor.prompts[-1]
    assert json.dumps(TOOLS[0], ensure_ascii=False) in prompt
    assert '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris é", "days": 2}}</tool_call>' in prompt
    assert '<tool_call>{"name": "now", "arguments": {}}</tool_call>' in prompt
    assert "<think>Hm.</think>" in prompt
    assert "<|im_start|>tool\nnoon<|im_end|>" in prompt


def test_tool_choice_none_neither_offers_nor_reads_calls(server: Running) -> None:
    message = ask(server, "one", tool_choice="none")["choices"][0]["message"]
    assert "tool_calls" not in message
    assert message["content"].startswith('\n{"name"') or message["content"].startswith('{"name"')
    executor = server.executor
    assert isinstance(executor, ScriptedExecutor)
    assert "<tools>" not in executor.prompts[-1]


def test_reasoning_effort_goes_to_the_template(server: Running) -> None:
    executor = server.executor
    assert isinstance(executor, ScriptedExecutor)
    for effort, ending in (("none", "<think></think>"), ("low", "assistant\n"), (None, "assistant\n")):
        ask(server, "plain", reasoning_effort=effort)
        assert executor.prompts[-1].endswith(ending)
    ask(server, "plain", chat_template_kwargs={"enable_thinking": False}, reasoning_effort="high")
    assert executor.prompts[-1].endswith("<think></think>"), "the narrower wish counts"


def test_reasoning_that_the_prompt_began(server: Running) -> None:
    template = TEMPLATE.replace("<think></think>", "<think></think>").replace(
        "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"
    )
    with served(lambda prompt: "So.</think>Yes.", template) as own:
        message = ask(own, "x", tools=None)["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("So.", "Yes.")
        own.wait_idle(5.0)


def test_reasoning_may_be_switched_off_by_the_operator() -> None:
    with served(by_question, reasoning_dialect="none") as own:
        answer = ask(own, "reasoned")
        assert answer["choices"][0]["message"]["content"] == "It is so.\n\nIt is."
        assert "completion_tokens_details" not in answer["usage"]
        own.wait_idle(5.0)


def conversation(*roles: str, ids: str = "a") -> list[dict[str, Any]]:
    calls = [{"id": i, "type": "function", "function": {"name": "now", "arguments": "{}"}} for i in ids]
    made: dict[str, dict[str, Any]] = {
        "u": {"role": "user", "content": "plain"},
        "c": {"role": "assistant", "tool_calls": calls},
        "a": {"role": "tool", "tool_call_id": "a", "content": "1"},
        "b": {"role": "tool", "tool_call_id": "b", "content": "2"},
    }
    return [made[role] for role in roles]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (conversation("u", "a"), "messages[1].tool_call_id"),
        (conversation("u", "c", "b"), "messages[2].tool_call_id"),
        (conversation("u", "c", "a", "a"), "messages[3].tool_call_id"),
        (conversation("u", "c", "u"), "messages[1].tool_calls[0].id"),
        (conversation("u", "c"), "messages[1].tool_calls[0].id"),
        (conversation("u", "c", "a", ids="ab"), "messages[1].tool_calls[1].id"),
        (conversation("u", "c", "a", ids="aa"), "messages[1].tool_calls[1].id"),
        (conversation("u", "c", "a", "u", "a"), "messages[4].tool_call_id"),
    ],
)
def test_calls_and_their_answers_must_match(server: Running, messages: list[dict[str, Any]], param: str) -> None:
    response = server.post("/v1/chat/completions", body_of(server, "", messages=messages))
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_matching_calls_are_taken(server: Running) -> None:
    for messages in (conversation("u", "c", "b", "a", "u", ids="ab"), conversation("u", "c", "a", "c", "a", "u")):
        ask(server, "", messages=messages)


def test_a_template_whose_format_is_not_known() -> None:
    """One clear error for tools; everything else works; the operator's word settles it."""
    template = "{% if tools %}{{ tools | tojson }} call so: @@f(x)@@{% endif %}{{ messages[-1].content }}"
    with served(lambda prompt: ANSWERS["one"], template) as own:
        response = own.post("/v1/chat/completions", body_of(own, "x"))
        assert response.status_code == 400
        error = error_of(response)
        assert (error["param"], error["code"]) == ("tools", "unknown_tool_dialect")
        assert "--tool-dialect" in error["message"]
        assert "tool_calls" not in ask(own, "x", tools=None)["choices"][0]["message"]
        assert "tool_calls" not in ask(own, "x", tool_choice="none")["choices"][0]["message"]
    with served(lambda prompt: ANSWERS["one"], template, tool_dialect="hermes") as own:
        assert ask(own, "x")["choices"][0]["finish_reason"] == "tool_calls"


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    with served(lambda prompt: ANSWERS["three"], template) as own:
        executor = own.executor
        assert isinstance(executor, ScriptedExecutor)
        assert len(ask(own, "x")["choices"][0]["message"]["tool_calls"]) == 3
        assert '"name": "get_weather"' in executor.prompts[-1]
        assert executor.prompts[-1].count("<tool_call>") == 1
        ask(own, "", messages=conversation("u", "c", "a", "u"))
        assert '[assistant] <tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n' in executor.prompts[-1]
        result = "[user] <tool_response>\n1\n</tool_response>\n\n<tool_response>\n2\n</tool_response>\n\nplain\n"
        ask(own, "", messages=conversation("u", "c", "a", "b", "u", ids="ab"))
        assert result in executor.prompts[-1], "user and assistant take turns"
        response = own.post("/v1/chat/completions", body_of(own, "x", reasoning_effort="low"))
        assert (error_of(response)["param"], error_of(response)["code"]) == ("reasoning_effort", "not_supported")


def test_harmony_is_read_without_tools_too() -> None:
    """gpt-oss marks all that it writes: the markers must be seen, and not shown, whatever was asked for."""
    template = (
        "{{ tools }}{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "<|start|>assistant{# <|channel|>analysis #}"
    )
    special = ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>")
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    with served(lambda prompt: text, template, special) as own:
        for more in ({"tools": None}, {}):
            message = ask(own, "x", **more)["choices"][0]["message"]
            assert message == {"role": "assistant", "content": "Yes.", "refusal": None, "reasoning_content": "Hm."}
        assert put_together(stream(own, "x", tools=None))[0]["content"] == "Yes."
        own.wait_idle(5.0)


def test_wishes_that_contradict_each_other(server: Running) -> None:
    for more, param in (
        ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        ({"tools": [TOOLS[1], TOOLS[1]]}, "tools[1].function.name"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}, None),
    ):
        response = server.post("/v1/chat/completions", body_of(server, "plain", **more))
        assert response.status_code == 400
        assert param is None or error_of(response)["param"] == param


def test_ft09_a_parser_that_breaks_ends_its_request_alone(server: Running) -> None:
    """FT-09: an error, streamed or not; whoever is beside it is served."""

    def break_at(text: str) -> None:
        if "@" in text:
            raise RuntimeError("a mistake of ours (secret detail)")

    with armed(Fault("turn.parse", break_at)), ThreadPoolExecutor(2) as pool:
        beside = pool.submit(ask, server, "three")
        response = server.post("/v1/chat/completions", body_of(server, "ab@cd"))
        assert response.status_code == 500
        assert "secret" not in response.text
        assert error_of(response)["type"] == "server_error"
        with pytest.raises(httpx.HTTPError):
            stream(server, "ab@cd")
        assert len(beside.result()["choices"][0]["message"]["tool_calls"]) == 3
    assert ask(server, "ab@cd")["choices"][0]["message"]["content"] == "ab@cd"


def test_legacy_functions_are_refused_by_name(server: Running) -> None:
    for name, value in (("functions", [{"name": "f"}]), ("function_call", "auto")):
        response = server.post("/v1/chat/completions", server.chat(**{name: value}))
        assert error_of(response)["param"] == name
        assert "'tools'" in error_of(response)["message"]


def test_what_reaches_the_engine(server: Running) -> None:
    """Only the markers are shown; a turn without wishes has no grammar."""
    executor = server.executor
    assert isinstance(executor, ScriptedExecutor)
    codec = server.service.codec
    ask(server, "plain")
    params: SamplingParams = executor.params[-1]
    shown = {codec.token_text(token_id) for token_id in params.shown_special_ids}
    assert shown == {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    assert params.skip_special_tokens
    assert params.grammar is None
    ask(server, "plain", tools=None)
    assert len(executor.params[-1].shown_special_ids) == 2
