"""Chat templates that attack: SE-09 (out of the sandbox), SE-10 (time and memory)."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.text.test_hostile_files import spec
from tokenmill.core.errors import CheckpointError, InvalidRequest
from tokenmill.engine.text import TextCodec
from tokenmill.engine.text.template import ChatTemplates

USER = {"role": "user", "content": "Hi"}

_events: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in ("exec", "compile", "import", "open", "subprocess.Popen", "os.system", "socket.connect"):
        _events.append(event)


sys.addaudithook(_watch)

WAYS_OUT = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ ''|attr('__cl' ~ 'ass__') }}",
    "{{ (messages|attr('__class__')).__base__ }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ [''] | map('attr', '__class__') | list }}",
    "{{ [{'a': ''}] | map(attribute='a.__class__') | list }}",
    "{{ [''] | groupby('__class__') | list }}",
    "{{ [''] | sort(attribute='__class__') | list }}",
    "{{ [''] | sum(attribute='__class__', start='') }}",
    "{{ [''] | selectattr('__class__') | list }}",
    "{{ [''] | unique(attribute='__class__') | list }}",
    "{{ [''] | max(attribute='__class__') }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{a.__class__}'.format(a='') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{{ '{0[__class__]}'.format(messages) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ('{0.__class__}'|attr('format'))('') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__closure__ }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ range.__class__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ self._TemplateReference__context.resolve('messages') }}",
    "{{ loop }}{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for m in messages %}{{ loop._iterable.__class__ }}{% endfor %}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}{{ m._func.__globals__ }}",
    "{{ messages.append({}) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].clear() }}",
    "{% set ns = namespace(__class__=1) %}{{ ns.__class__ }}",
    "{% set ns = namespace() %}{% set ns.__init__ = 1 %}{{ ns }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('id') }}",
    "{% from 'os' import system %}",
    "{% extends '/etc/passwd' %}",
    "{{ (1).__class__ }}{{ (1.0).__class__ }}{{ none.__class__ }}{{ true.__class__ }}",
    "{{ (messages | tojson).__class__ }}",
    "{{ messages.__reduce_ex__(2) }}",
    "{{ messages.__getitem__(0) }}",
    "{{ (''|string|escape).__html__.__func__ }}",
    "{{ (range(3)|batch(2)).gi_frame.f_globals }}",
    "{{ (messages|map('string')).gi_code }}",
    "{{ strftime_now('%Y').__class__ }}",
    "{{ undefined_name.__class__ }}{{ undefined_name.__init__.__globals__ }}",
    "{{ undefined_name._undefined_exception }}{{ undefined_name._fail_with_undefined_error() }}",
]
TELLING = ("<class", "<module", "<function", "<built-in", "<bound", "object at 0x", "root:", "uid=", "<frame", "<code")


@pytest.mark.parametrize("source", WAYS_OUT)
def test_se09_templates_reach_nothing_but_their_variables(source: str) -> None:
    """SE-09: refused, or shown as nothing; nothing is imported, opened or run meanwhile."""
    global _watching
    messages = [dict(USER)]
    try:
        templates = ChatTemplates({"default": source}, {})
        _events.clear()
        _watching = True
        try:
            shown = templates.render(messages)
        finally:
            _watching = False
    except (InvalidRequest, CheckpointError):
        shown = ""
    assert not _events
    assert not [word for word in TELLING if word in shown], shown
    assert messages == [USER]


BOMBS = {
    "nested loops": "{% for a in range(20000) %}{% for b in range(20000) %}x{% endfor %}{% endfor %}",
    "a repeated letter": "{{ 'a' * 200000000 }}",
    "wide letters": "{{ '😀' * 30000000 }}",
    "recursive macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "giant output": "{% for i in range(90000) %}" + "x" * 9000 + "{% endfor %}",
    "sorting again and again": "{% for i in range(90000) %}{{ range(90000) | list | sort | length }}{% endfor %}",
    "searching again and again": "{% set s = 'a' * 4000000 %}{% for i in range(99999) %}{{ 'b' in s }}{% endfor %}",
    "copying again and again": "{% set s = 'a' * 4000000 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "a million formats": "{{ ('%(a)9999d' * 100000) % {'a': 1} }}",
    "a million format calls": "{{ ('{0:9999}' * 100000).format(1) }}",
    "a width that is an argument": "{{ ('{0:{1}}' * 1000).format(1, 1000000) }}",
    "a wide format": "{{ '{:1000000000}'.format(1) }}",
    "a wide format filter": "{{ ('%(a)9999d' * 100000) | format(a=1) }}",
}
LIMIT_S = 4.0
LIMIT_KB = 192 * 1024


@pytest.mark.parametrize("name", BOMBS)
def test_se10_bombs_end_at_their_budget(name: str) -> None:
    """SE-10: a second of processor time and a few characters for each that was given; then 400."""
    templates = ChatTemplates({"default": BOMBS[name]}, {})
    before, started_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(InvalidRequest) as caught:
        templates.render([USER])
    assert time.thread_time() - started_s < LIMIT_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT_KB
    assert caught.value.param == "messages"


DEEP = {
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "negations": "{{ " + "not " * 5000 + "1 }}",
    "loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "conditions": "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "macros": "{% macro a() %}" * 100 + "{% endmacro %}" * 100,
    "filters": "{{ 'a'" + " | upper" * 5000 + " }}",
    "digits": "{{ " + "1" * 5000 + " }}",
    "unclosed": "{% for a in [1] %}{{",
}


@pytest.mark.parametrize("name", DEEP)
def test_se10_what_python_cannot_compile_is_a_bad_checkpoint(name: str) -> None:
    """SE-10: told when the model is loaded, by the template's name."""
    with pytest.raises(CheckpointError, match="'default'"):
        ChatTemplates({"default": DEEP[name]}, {})


@pytest.mark.parametrize("source", ["{{ '\\ud800' }}", "{{ '%c' % 55296 }}", "{{ '\\x00' }}{{ messages[0].content }}"])
def test_what_a_template_writes_is_text_or_refused(source: str, tmp_path: Path) -> None:
    """Half a character comes out of a template: an error of that request."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec()))
    (tmp_path / "chat_template.jinja").write_text(source)
    codec = TextCodec.load(tmp_path)
    if "ud800" in source or "%c" in source:
        with pytest.raises(InvalidRequest, match="messages"):
            codec.encode_chat([USER])
    else:
        assert codec.encode_chat([USER])


def test_an_honest_render_is_far_from_its_budget() -> None:
    """Two megabytes of messages through trimming, joining and JSON."""
    source = "{% for m in messages %}{{ '<' ~ m.role ~ '>' + m.content | trim + '\\n' }}{{ m | tojson }}{% endfor %}"
    templates = ChatTemplates({"default": source}, {})
    started_s = time.thread_time()
    text = templates.render([{"role": "user", "content": "word " * 500}] * 800)
    assert len(text) > 4_000_000
    assert time.thread_time() - started_s < 0.6
