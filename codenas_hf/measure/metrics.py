"""Measures of a model's text, as pure functions; `codenas_hf/suite/modules` offers them as `evaluate` modules.

Thresholds are calibrated on human code (the standard library, byte-level BPE of 8,192): of human windows of 128 tokens
1 % has a `repetition` above 0.58 or a `line_repetition` above 0.30, and none is half a loop. Limits that are usual for
prose would call a fifth of human code degenerate.
"""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import math
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

LOOP_PERIOD = 64
LOOP_SHARE = 0.5
REPEAT_LIMIT = 0.60
LINE_REPEAT_LIMIT = 0.40
COPY_LIMIT = 0.6
EARLY_END_TOKENS = 4


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Summed cross-entropy in bits, per UTF-8 byte of the text.

    Raises:
        ValueError: no bytes.
    """
    if num_bytes < 1:
        raise ValueError(f"`num_bytes` must be at least 1, got {num_bytes}: there is no text")
    return nats / math.log(2) / num_bytes


def wilson_interval(successes: float, trials: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a rate (Wilson, 1927); 95 % by default.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right (Chen et al., 2021, arXiv 2107.03374).

    Raises:
        ValueError: k samples were not drawn, or more are correct than were drawn.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"expected 1 <= k <= samples and correct <= samples, got {k=}, {num_samples=}, {num_correct=}"
        )
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(num_samples - num_correct + 1, num_samples + 1))


def repetition(tokens: Sequence[Hashable], *, n: int = 4) -> float:
    """rep-n: share of n-grams that occurred before (Welleck et al., 2019); 0 for fewer than n tokens."""
    total = len(tokens) - n + 1
    return 1.0 - len({tuple(tokens[i : i + n]) for i in range(total)}) / total if total > 0 else 0.0


def line_repetition(text: str) -> float:
    """rep-line: share of non-blank lines that occurred before (Code Copycat, arXiv 2504.12608)."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 1.0 - len(set(lines)) / len(lines) if lines else 0.0


def loop_share(tokens: Sequence[Hashable]) -> float:
    """Share of the sequence that ends it as three or more repeats of at most 64 tokens."""
    best = 0
    for period in range(1, min(LOOP_PERIOD, len(tokens) // 3) + 1):
        length = period
        while length < len(tokens) and tokens[-1 - length] == tokens[-1 - length + period]:
            length += 1
        if length >= 3 * period:
            best = max(best, length)
    return best / len(tokens) if tokens else 0.0


def copy_share(tokens: Sequence[Hashable], prompt: Sequence[Hashable]) -> float:
    """Longest run of tokens that also stands in the prompt, as a share of the sequence."""
    if not tokens:
        return 0.0
    match = SequenceMatcher(None, prompt, tokens, autojunk=False).find_longest_match()
    return match.size / len(tokens)


def code_lines(text: str) -> int:
    """Lines that are neither blank nor only a comment nor only punctuation."""
    return sum(bool(re.search(r"\w", line.partition("#")[0])) for line in text.splitlines())


@dataclass(frozen=True)
class Collapse:
    """In which ways one completion is degenerate.

    Args:
        loop: it ends in three or more repeats of at most 64 tokens that make up half of it.
        repeat: more than 60 % of its 4-grams, or 40 % of its lines, occurred before.
        empty: no more than one line of code, or ended within 4 tokens, where the reference goes on; or no code at all.
        copy: 60 % of it is one run of tokens taken from the prompt.
    """

    loop: bool
    repeat: bool
    empty: bool
    copy: bool

    @property
    def collapsed(self) -> bool:
        """Any of them."""
        return self.loop or self.repeat or self.empty or self.copy


def collapse(
    tokens: Sequence[Hashable],
    text: str,
    *,
    prompt_tokens: Sequence[Hashable] = (),
    reference: str | None = None,
    ended: bool = False,
) -> Collapse:
    """Judges one completion.

    Args:
        tokens: its tokens, without what follows the end.
        text: its text.
        prompt_tokens: tokens of the prompt.
        reference: what a person wrote there, no longer in tokens than the completion may be; None where there is no
            such text: then one line of code is enough.
        ended: whether the model ended the text itself.
    """
    wanted = 2 if reference is not None and code_lines(reference) >= 2 else 1
    early = ended and len(tokens) <= EARLY_END_TOKENS and wanted > 1
    return Collapse(
        loop=loop_share(tokens) >= LOOP_SHARE,
        repeat=repetition(tokens) > REPEAT_LIMIT or line_repetition(text) > LINE_REPEAT_LIMIT,
        empty=early or code_lines(text) < wanted,
        copy=len(tokens) > EARLY_END_TOKENS and copy_share(tokens, prompt_tokens) >= COPY_LIMIT,
    )


def parses(code: str, *, spare_lines: int = 0) -> bool:
    """Whether Python's parser takes the code.

    Args:
        code: a module.
        spare_lines: so many lines may be left out at the end: a completion cut by length ends within a statement.
    """
    lines = code.splitlines()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for spare in range(min(spare_lines, max(0, len(lines) - 1)) + 1):
            try:
                ast.parse("\n".join(lines[: len(lines) - spare]) + "\n")
                return True
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
    return False


def _common_subsequence(first: str, second: str) -> int:
    """Length of the longest common subsequence, 64 or more letters at a time (Hyyrö, 2004)."""
    masks: dict[str, int] = {}
    for index, letter in enumerate(first):
        masks[letter] = masks.get(letter, 0) | 1 << index
    full = (1 << len(first)) - 1
    state = full
    for letter in second:
        matched = state & masks.get(letter, 0)
        state = ((state + matched) | (state - matched)) & full
    return len(first) - state.bit_count()


def edit_similarity(prediction: str, reference: str) -> float:
    """Share of both texts that insertions and deletions leave in place (0 to 1), as CodeXGLUE reports it."""
    total = len(prediction) + len(reference)
    return 2 * _common_subsequence(prediction, reference) / total if total else 1.0


def first_line(text: str) -> str:
    """The rest of the current line, without white space around it."""
    return text.partition("\n")[0].strip()


def line_exact_match(prediction: str, reference: str) -> bool:
    """Whether the first lines agree, white space around them aside."""
    return first_line(prediction) == first_line(reference)


def skeleton(text: str, *, tokens: int = 32) -> tuple[str, ...]:
    """The first tokens of code with names, numbers and strings made equal; layout is left out."""
    found: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                found.append(token.string if keyword.iskeyword(token.string) else "NAME")
            elif token.type in (tokenize.NUMBER, tokenize.STRING):
                found.append(tokenize.tok_name[token.type])
            elif token.type == tokenize.OP:
                found.append(token.string)
    except (tokenize.TokenError, SyntaxError, ValueError):
        pass  # what came before the error counts
    if not found:
        found = re.findall(r"\w+|[^\w\s]", text)
    return tuple(found[:tokens])


@dataclass(frozen=True)
class PromptCollapse:
    """How much a model says the same whatever it is asked.

    Args:
        share: completions whose skeleton at least two other prompts got too.
        distinct: different skeletons.
        effective: exp of the entropy of the skeletons: how many different answers there seem to be.
        distinct_2: different pairs of neighbouring tokens, as a share of all pairs.
    """

    share: float
    distinct: int
    effective: float
    distinct_2: float


def prompt_collapse(texts: Sequence[str], tokens: Sequence[Sequence[Hashable]]) -> PromptCollapse:
    """Compares the completions of different prompts, one each.

    Raises:
        ValueError: no completion.
    """
    if not texts:
        raise ValueError("`texts` is empty: give one completion for each prompt")
    counts = Counter(skeleton(text) for text in texts)
    shares = [count / len(texts) for count in counts.values()]
    pairs = [pair for row in tokens for pair in itertools.pairwise(row)]
    return PromptCollapse(
        share=sum(count for count in counts.values() if count >= 3) / len(texts),
        distinct=len(counts),
        effective=math.exp(-sum(share * math.log(share) for share in shares)),
        distinct_2=len(set(pairs)) / len(pairs) if pairs else 0.0,
    )


def sample_similarity(samples: Sequence[str]) -> float:
    """Mean edit similarity of all pairs of samples of one prompt; above 0.95 the samples have collapsed.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"two samples or more are compared, got {len(samples)}")
    values = [edit_similarity(a, b) for i, a in enumerate(samples) for b in samples[i + 1 :]]
    return sum(values) / len(values)


def legacy_repetition_ratio(text: str) -> float:
    """The earlier project's measure: share of the most frequent character. High for any indented code."""
    return max(Counter(text).values()) / len(text) if text else 0.0


def legacy_collapse(text: str) -> bool:
    """The earlier project's verdict: one character makes up more than 80 %, or fewer than 5 differ."""
    return legacy_repetition_ratio(text) > 0.8 or len(set(text)) < 5
