"""Rendering a template that comes from a stranger: Jinja's immutable sandbox, and a budget.

The sandbox keeps a template from reaching anything but its variables. It does not keep it from asking for
10^9 characters or nested loops without end, so work is metered: every loop turn, call, filter, sum and output
is charged before or as it happens, and a render that overdraws ends with an error. So does one that takes more than
a second of processor time, whatever the meter thought of it. Both are looked at between operations of the template:
the meter is what keeps a single one small. That bounds the usual ways to burn time and memory; it is no proof
against all.

The dialect is that of the ``transformers`` library, so that a template means here what it means there.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 2_000_000
"""Loop turns, calls and elements handled in one render."""
MAX_CHARS = 2**24
CHARS_PER_INPUT_CHAR = 16
"""Characters made in one render, those thrown away included: so many, and so many for each that is given."""
MAX_CPU_S = 1.0
"""Processor time of one render; two megabytes of messages take a tenth of it."""
_LOOK_EVERY = 512
_CALL_STEPS = 8  # a call takes about as long as eight turns of an empty loop
_MAX_INT_BITS = 4096


class RefusedByTemplate(jinja2.TemplateError):
    """The template called ``raise_exception``: it does not take these messages."""


class OverBudget(jinja2.TemplateError):
    """The template wanted more than the meter allows."""


class _Meter:
    """What one render has left."""

    __slots__ = ("_ends_s", "_unseen", "chars", "steps")

    def __init__(self, num_input_chars: int) -> None:
        self.steps = MAX_STEPS
        self.chars = MAX_CHARS + CHARS_PER_INPUT_CHAR * num_input_chars
        self._ends_s = time.thread_time() + MAX_CPU_S
        self._unseen = 0

    def charge(self, *, steps: int = 1, chars: int = 0) -> None:
        self.steps -= steps
        self.chars -= chars
        self._unseen += steps + (chars >> 8)
        if self.steps < 0 or self.chars < 0:
            raise OverBudget(f"more than {MAX_STEPS} steps, or too many characters for what it was given")
        if self._unseen >= _LOOK_EVERY:
            self._unseen = 0
            if time.thread_time() > self._ends_s:
                raise OverBudget(f"more than {MAX_CPU_S:g} s of processor time")

    def charge_value(self, value: object) -> None:
        """Charge for a value that is made or shown: its characters, or its elements, all the way down."""
        pending = [value]
        while pending:
            item = pending.pop()
            if isinstance(item, str):
                self.charge(chars=len(item))
            elif isinstance(item, dict):
                pending += (*item.keys(), *item.values())
            elif isinstance(item, list | tuple | set):
                pending += item
            self.charge()

    def charge_growth(self, name: str, args: tuple[Any, ...]) -> None:
        """Charge, before it is called, for what a filter or method may make out of little."""
        self.charge(steps=1 + sum(len(arg) >> 6 for arg in args if isinstance(arg, str)))
        self.charge(chars=max((0, *(arg for arg in args if type(arg) is int))))
        text = args[0] if args and isinstance(args[0], str) else ""
        match name, args:
            case "replace", (_, str(old), str(new), *_):
                self.charge(chars=(text.count(old) if old else len(text) + 1) * len(new))
            case (("indent" | "expandtabs"), (_, int(width), *_)):
                self.charge(chars=(text.count("\n") + text.count("\t") + 1) * width)
            case (("format" | "strftime_now"), _):
                self.check_format(text)
                self.charge_value(args)
            case (("join" | "string" | "tojson" | "pprint" | "urlencode" | "xmlattr"), _):
                self.charge_value(args)
            case (("translate" | "maketrans" | "format_map"), _):
                raise OverBudget(f"{name} is not allowed in chat templates")

    def check_format(self, text: str) -> None:
        """Charge for the widths of a format, which must stand in it."""
        if re.search(r"\d{5}|%[^a-zA-Z%]*\*|\{[^{}]*\{", text):
            raise OverBudget("a format width of more than 4 digits, or one that is an argument")
        self.charge(chars=sum(map(int, re.findall(r"\d+", text))))


_METER: ContextVar[_Meter] = ContextVar("meter")


def compile_template(source: str, now: Callable[[], datetime]) -> jinja2.Template:
    """Compile ``source``; raises ``jinja2.TemplateSyntaxError``. ``now`` is what ``strftime_now`` shows."""
    environment = _Environment(now)
    tree = _Metered().visit(environment.parse(source))
    return jinja2.Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The rendered text; raises what the template raises, ``OverBudget`` among it."""
    token = _METER.set(_Meter(_num_chars(variables)))
    try:
        return template.render(variables)
    finally:
        _METER.reset(token)


def _num_chars(value: object) -> int:
    """Characters in the strings of ``value``, all the way down."""
    count, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            count += len(item)
        elif isinstance(item, Mapping):
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
    return count


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols], finalize=_shown
        )
        self.filters |= {"tojson": _tojson}
        self.filters = {name: _metered(name, function) for name, function in self.filters.items()}
        self.filters |= {"_turns": _turns, "_concat": _concat}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda format: now().strftime(format),
            "dict": _make_dict,
            "namespace": _Namespace,
        }

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # the sandbox wraps str.format
        name = "strftime_now" if __obj is __self.globals["strftime_now"] else getattr(__obj, "__name__", "")
        subject = (owner,) if isinstance(owner, str) else ()
        meter = _METER.get()
        meter.charge(steps=_CALL_STEPS)
        meter.charge_growth(name, (*subject, *args, *kwargs.values()))
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str):
            meter.charge(chars=len(result))
        return result

    def handle_exception(self, source: str | None = None) -> NoReturn:
        """Pass on what was raised. Jinja's own compiles code for each frame, to show the template's lines."""
        raise

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _METER.get().charge(**_binop_cost(operator, left, right))
        return super().call_binop(context, operator, left, right)


def _binop_cost(operator: str, left: Any, right: Any) -> dict[str, int]:
    """Steps and characters that an operation takes; refuses numbers without bound."""
    meter = _METER.get()
    if operator == "%" and isinstance(left, str):
        meter.check_format(left)
        meter.charge_value(right)
        return {"chars": len(left)}
    if operator in ("*", "**") and type(left) is int and type(right) is int:
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_INT_BITS:
            raise OverBudget(f"a number of more than {_MAX_INT_BITS} bits")
    sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
    counts = [side for side in (left, right) if type(side) is int and sizes]
    size = sum(sizes) * (max(counts[0], 0) if operator == "*" and counts else 1)
    return {"chars": size} if isinstance(left, str) or isinstance(right, str) else {"steps": 1 + size // 16}


class _Metered(NodeTransformer):
    """Sends every loop's items and every ``~`` through the meter."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 (Jinja's naming)
        self.generic_visit(node)
        literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filter("_turns", node.iter, nodes.Const(literal))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filter("_concat", nodes.List(node.nodes))


def _filter(name: str, subject: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    assert isinstance(subject, nodes.Expr)
    return nodes.Filter(subject, name, list(args), [], None, None, lineno=subject.lineno)


def _turns(items: Iterable[Any], literal_chars: int) -> Iterator[Any]:
    """``items``, each charged as one turn with the template text that the loop's body holds."""
    meter = _METER.get()
    for item in items:
        meter.charge(chars=literal_chars)
        yield item


def _concat(parts: list[Any]) -> str:
    _METER.get().charge_value(parts)
    return "".join(map(str, parts))


def _shown(value: Any) -> Any:
    """Charged for every value put out. Constants are put out when the template is compiled: those are free."""
    meter = _METER.get(None)
    if meter is not None:
        meter.charge_value(value)
    return value


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays. Outside a render there is no meter, which keeps Jinja from folding it into a constant."""

    num_own = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or environment comes first

    @wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.charge_growth(name, (*args[num_own:], *kwargs.values()))
        result = function(*args, **kwargs)
        if isinstance(result, str):
            meter.charge(chars=len(result))
        elif isinstance(result, list):
            meter.charge(steps=len(result) // 16)
        return result

    return metered


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise RefusedByTemplate(message)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """``dict`` as a plain function: the class would bring its attributes along."""
    return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without underscored attributes, which reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        jinja2.utils.Namespace.__init__(*args, **kwargs)
        for name in dict(*args[1:], **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}: it begins with an underscore")


class _GenerationTag(Extension):
    """``{% generation %} … {% endgeneration %}`` marks what a model is trained on; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 (as the base class declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
