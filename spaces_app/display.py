"""What a visitor sees of a completion: highlighted code with the new part marked, and a line of measurements.

Everything that comes from a visitor or a model is escaped here; nothing else writes HTML from such text.
"""

from __future__ import annotations

import itertools
from html import escape

from completion import FILL, Progress, is_short
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Literal, Name, Number, Operator, String, Token, _TokenType

SHOWN_CHARACTERS = 6_000
CLASSES: tuple[tuple[_TokenType, str], ...] = (
    (Comment, "comment"),
    (String.Doc, "string"),
    (String, "string"),
    (Number, "number"),
    (Keyword, "keyword"),
    (Operator.Word, "keyword"),
    (Name.Function, "name"),
    (Name.Class, "name"),
    (Name.Decorator, "name"),
    (Name.Builtin, "builtin"),
    (Literal, "string"),
    (Token, ""),
)
ENDED = {
    "end": "the model ended it",
    "block": "the block is done",
    "length": "the length was reached",
    "stopped": "stopped by you",
    "time": "the time was up",
}


def code_html(progress: Progress) -> str:
    """The code as highlighted HTML, the completion inside `<mark>`; of a long prefix only the end is shown."""
    prefix = progress.prefix[-SHOWN_CHARACTERS:]
    cut = "…\n" if len(prefix) < len(progress.prefix) else ""
    suffix = progress.suffix[:SHOWN_CHARACTERS]
    start, end = len(prefix), len(prefix) + len(progress.completion)
    parts = [cut]
    inside = False
    for position, kind, text in PythonLexer(stripnl=False).get_tokens_unprocessed(
        prefix + progress.completion + suffix
    ):
        style = next(name for token, name in CLASSES if kind in token)
        for offset, piece in _split(text, position, (start, end)):
            within = start <= offset < end
            if within != inside:
                parts.append("<mark>" if within else "</mark>")
                inside = within
            parts.append(f'<span class="c-{style}">{escape(piece)}</span>' if style else escape(piece))
    if inside:
        parts.append("</mark>")
    caret = "" if progress.ended else '<span class="caret"></span>'
    return f'<pre class="code" tabindex="0"><code>{"".join(parts)}{caret}</code></pre>'


def _split(text: str, position: int, borders: tuple[int, int]) -> list[tuple[int, str]]:
    """(offset, piece) of a token cut where the completion begins and ends, so that no piece lies on both sides."""
    cuts = [border - position for border in borders if position < border < position + len(text)]
    edges = [0, *sorted(set(cuts)), len(text)]
    return [(position + a, text[a:b]) for a, b in itertools.pairwise(edges)]


def measures_html(progress: Progress) -> str:
    """One line of measurements and verdicts below the code."""
    chips = []
    if progress.tokens_per_second is not None:
        chips.append(_chip("plain", f"{progress.tokens_per_second:,.0f} tokens/s"))
    if progress.first_token_s is not None:
        chips.append(_chip("plain", f"first token {progress.first_token_s * 1000:,.0f} ms"))
    if progress.ended:
        chips.append(_chip("plain", f"{progress.new_tokens} tokens, {ENDED[progress.ended]}"))
        if progress.parses is not None:
            chips.append(_chip("good" if progress.parses else "bad", progress.parse_remark))
        if progress.collapse:
            chips.append(_chip("bad", progress.collapse))
    else:
        chips.append(
            _chip("plain", f"reading {progress.prompt_tokens:,} tokens" if not progress.completion else "writing")
        )
    chips += [_chip("warn", remark) for remark in progress.remarks]
    return f'<div class="measures">{"".join(chips)}</div>'


def _chip(kind: str, text: str) -> str:
    return f'<span class="chip {kind}">{escape(text)}</span>'


def panel_html(progress: Progress) -> str:
    """Code and measurements of one model, under its name."""
    copy = '<button class="copy" type="button" aria-label="Copy the completion">Copy</button>'
    head = f'<div class="head"><span class="model-name">{escape(progress.model)}</span>{copy}</div>'
    return f'<div class="panel">{head}{code_html(progress)}{measures_html(progress)}</div>'


def waiting_html(text: str) -> str:
    """An empty panel that says what will stand there."""
    return f'<div class="panel empty"><p>{escape(text)}</p></div>'


def hint_html(prompt: str, examples: str) -> str:
    """What to do about a prompt that gives a small model little to go by; empty where all is well."""
    if prompt.count(FILL) > 1:
        return f'<p class="hint">{escape(FILL)} may stand once; remove the others.</p>'
    if not prompt.strip() or not is_short(prompt, examples):
        return ""
    return (
        '<p class="hint"><b>Short prompt.</b> A model of this size guesses from what it has just read: '
        "one or two example functions before the prompt decide how good the answer is.</p>"
    )
