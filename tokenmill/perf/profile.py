"""``Profile``: a deployment's terms, taken apart so that a step costs microseconds to predict.

What a step costs outside attention depends on two numbers only, its tokens and its rows; ``step_ops`` is asked once
for each pair that comes up, and remembered (a decoding engine meets as many pairs as it has batch sizes). Attention
is affine in what ``perf/costs/work`` counts per window: for rows of one token, rows and positions read; for longer
rows, tokens, positions and (query, key) pairs. Those coefficients are differences of what ``step_ops`` says of small
steps. The formulas stay where they are; sparse attention over an index (DeepSeek-V3.2) is not affine, and is asked
for anew each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenmill.perf.costs import Op, Rows, Work, step_ops
from tokenmill.perf.costs.work import total_pairs, total_positions
from tokenmill.perf.shape import LatentAttention, ModelShape
from tokenmill.perf.terms import HALF_EFFICIENT_PROMPT, LAUNCH, NAMES, ROW_S, STEP_S, Deployment, compact, sum_ops

SINGLE_MEMORY, SINGLE_COMPUTE = NAMES.index("decode.memory"), NAMES.index("decode.compute")
PROMPT_MEMORY, PROMPT_COMPUTE = NAMES.index("prefill.memory"), NAMES.index("prefill.compute")
ATTENTION = ("decode attention", "prefill attention")
MANY = 1 << 14
"""Pairs of (tokens, rows) remembered at most."""
FAR = 4096
"""Tokens between the two steps from which a slope is taken."""


@dataclass(frozen=True, slots=True)
class _Window:
    """Seconds of attention in all layers with one window."""

    size: int | None
    launch: float
    row_memory: float
    position_memory: float
    position_compute: float
    token_memory: float
    prompt_position_memory: float
    pair_compute: float


class Profile:
    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._shape = compact(deployment.shape)
        mixers = [run.mixer for run in self._shape.layers if run.mixer and run.mixer.kv_elements]
        self._affine = not any(isinstance(mixer, LatentAttention) and mixer.index for mixer in mixers)
        self._windows = (
            [self._window(size) for size in dict.fromkeys(mixer.window for mixer in mixers)] if self._affine else []
        )
        self._rest: dict[tuple[int, int], list[float]] = {}
        # On one device, without experts or latent vectors, all but attention is affine in the tokens as well.
        self._straight = (
            deployment.layout.num_devices == 1
            and not deployment.shape.has_experts
            and not any(isinstance(mixer, LatentAttention) for mixer in mixers)
        )
        self._lines: dict[int, tuple[list[float], list[float]]] = {}  # rows → at a token each, and per further token

    def of_plan(self, starts: Sequence[int], counts: Sequence[int]) -> Sequence[float]:
        """The terms of a step that computes ``counts[i]`` tokens after ``starts[i]``, each row with logits."""
        tokens, rows = sum(counts), len(counts)
        if not self._affine:
            return self._deployment.terms(Work(tuple(map(Rows, counts, starts)), rows))
        terms = self._outside_attention(tokens, rows)
        if tokens == rows:
            self._add_singles(terms, starts)
            return terms
        singles = [start for start, count in zip(starts, counts, strict=True) if count == 1]
        if singles:
            self._add_singles(terms, singles)
        self._add_prompts(terms, [Rows(n, c) for n, c in zip(counts, starts, strict=True) if n > 1])
        return terms

    def _outside_attention(self, tokens: int, rows: int) -> list[float]:
        if not self._straight:
            return self._outside_at(tokens, rows)
        line = self._lines.get(rows)
        if line is None:
            low, high = self._outside_at(rows, rows), self._outside_at(rows + FAR, rows)
            line = self._lines[rows] = low, [(b - a) / FAR for a, b in zip(low, high, strict=True)]
        begin, slope = line
        if tokens == rows:
            return begin.copy()
        return [a + b * (tokens - rows) for a, b in zip(begin, slope)]  # noqa: B905 (strict costs here)

    def _outside_at(self, tokens: int, rows: int) -> list[float]:
        found = self._rest.get((tokens, rows))
        if found is None:
            work = Work((Rows(tokens / rows, 0, rows),), rows)
            ops = (op for op in self._ops(self._shape, work) if op.kind not in ATTENTION)
            found = [*sum_ops(ops, self._deployment.hardware), STEP_S, rows / self._deployment.layout.dp * ROW_S, 0.0]
            if len(self._rest) >= MANY:
                self._rest.clear()
            self._rest[tokens, rows] = found
        return found.copy()

    def _add_singles(self, terms: list[float], starts: Sequence[int]) -> None:
        rows = len(starts)
        for window in self._windows:
            size = window.size
            if size is None:
                positions = sum(starts) + rows
            else:
                positions = sum([start + 1 if start < size else size for start in starts])
            terms[SINGLE_MEMORY] += rows * window.row_memory + positions * window.position_memory
            terms[SINGLE_COMPUTE] += positions * window.position_compute
            terms[LAUNCH] += window.launch

    def _add_prompts(self, terms: list[float], prompts: Sequence[Rows]) -> None:
        tokens = sum([prompt.tokens for prompt in prompts])
        longer = 1 + HALF_EFFICIENT_PROMPT / (tokens / len(prompts))
        for window in self._windows:
            positions, pairs = total_positions(prompts, window.size), total_pairs(prompts, window.size)
            terms[PROMPT_MEMORY] += tokens * window.token_memory + positions * window.prompt_position_memory
            terms[PROMPT_COMPUTE] += pairs * window.pair_compute * longer
            terms[LAUNCH] += window.launch

    # ---- finding coefficients ------------------------------------------------------------------------------

    def _ops(self, shape: ModelShape, work: Work) -> tuple[Op, ...]:
        return step_ops(shape, self._deployment.formats, self._deployment.layout, work)

    def _window(self, size: int | None) -> _Window:
        """Two unknowns per kind of row, so two steps each; one position, pair or token more."""
        layers = tuple(run for run in self._shape.layers if run.mixer and run.mixer.window == size)
        shape = replace(self._shape, layers=layers)

        def terms(rows: Rows) -> list[float]:
            ops = (op for op in self._ops(shape, Work((rows,), 0)) if op.kind in ATTENTION)
            return sum_ops(ops, self._deployment.hardware)

        near, far = terms(Rows(1, 0)), terms(Rows(1, 1))
        position = far[SINGLE_MEMORY] - near[SINGLE_MEMORY]
        short, late = terms(Rows(2, 0)), terms(Rows(2, 1))
        prompt_position = late[PROMPT_MEMORY] - short[PROMPT_MEMORY]
        return _Window(
            size,
            near[LAUNCH],
            near[SINGLE_MEMORY] - position,
            position,
            near[SINGLE_COMPUTE],
            short[PROMPT_MEMORY] / 2 - prompt_position,
            prompt_position,
            short[PROMPT_COMPUTE] / 3 / (1 + HALF_EFFICIENT_PROMPT / 2),
        )
