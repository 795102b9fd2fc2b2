"""What the two generating endpoints share, and the small types that every other one uses."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from typing_extensions import TypedDict

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.params import (
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_SEED,
    MAX_STOP_BYTES,
    MAX_STOP_STRINGS,
    SamplingParams,
)
from tokenmill.engine.service import Usage

MAX_INT = 2**31 - 1
MAX_STOP_TOKEN_IDS = 1024
MAX_ALLOWED_TOKEN_IDS = 2**17
MAX_CHOICES = 4096
FORM_FIELDS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)


class Wire(BaseModel):
    """Base of everything that a client sends."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_omitted(cls, data: Any) -> Any:
        """And of a million unknown fields, one is enough to complain about."""
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in data if name not in known), None)
        return {name: value for name, value in data.items() if value is not None and (name in known or name == unknown)}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The same in the published schema: what may be left out may be null."""
        made = handler.resolve_ref_schema(handler(schema))
        for name, prop in made.get("properties", {}).items():
            if name not in made.get("required", ()):
                made["properties"][name] = {"anyOf": [prop, {"type": "null"}]}
        return made


def at_most(limit: int) -> BeforeValidator:
    """Counts before anything inside is looked at: wrong entries must not cost one error each."""

    def check(value: Any) -> Any:
        if isinstance(value, dict | list) and len(value) > limit:
            raise ValueError(f"it holds {len(value)} entries; at most {limit} are taken")
        return value

    return BeforeValidator(check)


def _kind(value: object) -> Literal["~list", "~one"]:
    return "~list" if isinstance(value, list) else "~one"


def _stop_size(text: str) -> str:
    if len(text.encode("utf-8")) > MAX_STOP_BYTES:
        raise ValueError(f"a stop string must be at most {MAX_STOP_BYTES} bytes")
    return text


def _token_id_keys(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise ValueError(f"the key {key[:32]!a} is not a token id")
    return bias


StopString = Annotated[str, Field(min_length=1), AfterValidator(_stop_size)]
StopStrings = Annotated[
    Annotated[StopString, Tag("~one")]
    | Annotated[list[StopString], Field(fail_fast=True, min_length=1, max_length=MAX_STOP_STRINGS), Tag("~list")],
    Discriminator(_kind),
]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
Label = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[\x20-\x7e]+$")]
"""Something that is only passed on or ignored: printable ASCII."""
Salt = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:=+~-]+$")]
"""Names a share of the prefix cache. No slashes: it may become part of a key elsewhere."""
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
    at_most(16),
]


class StreamOptions(Wire):
    include_usage: bool = False
    """Send one more chunk at the end, without choices, that holds the usage."""
    continuous_usage_stats: bool = False
    """vLLM's: with ``include_usage``, every chunk holds the usage so far."""
    include_obfuscation: bool = False
    """Pad every increment, so that the size of what is sent does not tell the length of a token."""


class CacheWishes(Wire):
    """What becomes of the prompt's blocks in the prefix cache."""

    priority: Annotated[int, Field(ge=0, le=100)] = 0
    """Blocks of lower priority are evicted first."""
    ttl_s: Annotated[float, Field(gt=0, le=86400)] | None = None
    """Unused for this long, they are evicted before any others."""
    pin: bool = False
    """Evict them only when nothing else is left."""


Choices = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES), at_most(MAX_CHOICES)]


class StructuredOutputs(Wire):
    """The form of an answer with vLLM's names: exactly one of these."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    """A JSON schema, as an object or as text."""
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    """Lark, or GBNF (where it holds ``::=``)."""
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1:
            raise InvalidRequest(
                "structured_outputs needs exactly one of json, regex, choice, grammar and json_object",
                param="structured_outputs",
            )
        return self

    @property
    def only(self) -> tuple[str, Any]:
        """The one that is given, with its name."""
        (name,) = self.model_fields_set
        return name.rstrip("_"), getattr(self, name)


class EngineRequest(Wire):
    """What every request to the engine may say of its place in the queue and in the cache: extensions all."""

    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] = 0
    """Smaller runs earlier, where the server's policy looks at it."""
    timeout_s: Annotated[float, Field(gt=0, le=86400)] | None = None
    """Fail with 504 when the answer is not complete after this long."""
    tenant: Salt = "default"
    """Whose request it is: fair share is between tenants, and cached prompts are shared only within one."""
    cache_salt: Salt | None = None
    """Cached prompts are shared only within one salt."""
    cache: CacheWishes = CacheWishes()


class GenerationRequest(EngineRequest):
    """The fields of chat and completions alike; those after ``user`` are extensions with vLLM's names."""

    model: Annotated[str, Field(max_length=512)]
    n: Annotated[int, Field(ge=1, le=MAX_N)] = 1
    seed: Annotated[int, Field(ge=-(2**63), le=MAX_SEED)] | None = None
    stop: StopStrings | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=MAX_LOGIT_BIAS),
        at_most(MAX_LOGIT_BIAS),
        AfterValidator(_token_id_keys),
    ] = Field(default_factory=dict)
    metadata: Metadata | None = None
    """Accepted and not kept."""
    user: Label | None = None
    """Accepted and not kept."""

    top_k: Annotated[int, Field(ge=-1, le=MAX_INT)] = 0
    """0 and -1 keep every token."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] = 0
    ignore_eos: bool = False
    deterministic: bool = False
    """The same tokens in any company, at a price on a GPU; on a CPU that always holds."""
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_STOP_TOKEN_IDS)] = Field(
        default_factory=list
    )
    bad_words: Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_BAD_WORDS)] = Field(
        default_factory=list
    )
    allowed_token_ids: (
        Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS)] | None
    ) = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputs | None = None
    """What the answer must look like."""
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    @model_validator(mode="after")
    def _stream_rules(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only for stream: true", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest("prompt_logprobs is not for stream: true", param="prompt_logprobs")
        return self

    @model_validator(mode="after")
    def _one_form(self) -> GenerationRequest:
        if len(self.forms) > 1:
            first, second, *_ = self.forms
            raise InvalidRequest(f"'{first}' and '{second}' exclude each other: give one of them", param=second)
        if self.forms and self.ignore_eos:
            raise InvalidRequest(
                f"ignore_eos goes on after the answer's end, where '{next(iter(self.forms))}' allows nothing",
                param="ignore_eos",
            )
        return self

    @property
    def forms(self) -> dict[str, Any]:
        """The fields given that say what the answer must look like (``server/structured.py`` reads them)."""
        given = {name: getattr(self, name, None) for name in FORM_FIELDS}
        return {
            name: value
            for name, value in given.items()
            if value is not None and not (name == "response_format" and value.type == "text")
        }

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def include_obfuscation(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_obfuscation

    def sampling_params(
        self,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        best_of: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """The engine's form of the request.

        Raises:
            InvalidRequest: two fields contradict each other (``best_of`` below ``n``, ``min_tokens`` above
                the limit).
        """
        return SamplingParams(
            n=self.n,
            best_of=best_of,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=max(0, self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token_id): bias for token_id, bias in self.logit_bias.items()},
            bad_words=tuple(self.bad_words),
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids),
            include_stop=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            deterministic=self.deterministic,
            seed=self.seed,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            skip_special_tokens=self.skip_special_tokens,
        )


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail


class PromptTokensDetails(TypedDict):
    cached_tokens: int
    """Prompt tokens that were not computed, since the prefix cache held them."""


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int
    """Generated tokens that are the model's reasoning, its markers included."""


class UsageBody(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]
    """Of models that reason before they answer."""


class TimingBody(TypedDict):
    """Where the time went, in seconds. With several prompts: of the one that took longest."""

    queue_s: float
    prefill_s: float
    decode_s: float
    total_s: float
    ttft_s: float | None
    """From the request's arrival to its first token, as this server saw it."""
    tpot_s: float | None
    """Per token of the longest choice after its first; null where there is none."""
    tokens_per_s: float | None
    """Generated tokens of all choices over the whole time."""
    chunks: int
    """Steps that computed prompt tokens."""
    preemptions: int


class PromptLogprob(TypedDict):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Per prompt token: token id → its log-probability, likeliest first; null for the first token."""


class Answer(TypedDict):
    """What every generated answer and every chunk of one begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: NotRequired[UsageBody | None]
    timing: NotRequired[TimingBody]


def usage_body(parts: list[Usage]) -> UsageBody:
    """The sum over a request's prompts."""
    prompt, completion = sum(u.prompt_tokens for u in parts), sum(u.completion_tokens for u in parts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in parts)},
    }
