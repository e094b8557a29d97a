"""What the Hub's answers mean, and how long to wait for one."""

from __future__ import annotations

import datetime
import email.utils
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http


@contextmanager
def impatient(silence_s: float) -> Iterator[None]:
    """Inside it the client gives up on a Hub that says nothing for so long; by itself it would wait for ever."""
    before = _http._GLOBAL_CLIENT_FACTORY

    def client() -> Any:
        made = before()
        made.timeout = silence_s
        return made

    huggingface_hub.set_client_factory(client)
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(before)


def reason(status: int, error: HfHubHTTPError) -> str:
    """The Hub's refusal in words, with a way out."""
    said = error.server_message or str(error).splitlines()[0]
    match status:
        case 401:
            return f"the Hub does not accept the token; run `hf auth login` again ({said})"
        case 402:
            return f"the Hub asks for a paid account; leave `space` out of `what`, or upgrade ({said})"
        case 403:
            return f"the token has no right to write there; give it write access or choose another `repo_id` ({said})"
        case 404:
            return f"the Hub does not find it, or the token may not see it ({said})"
        case 409:
            return (
                f"the name is taken or another change is in progress; choose another `repo_id` or try again ({said})"
            )
        case 412:
            return f"somebody else committed meanwhile; run the same command again ({said})"
        case 413:
            return f"too large for the Hub; publish less with `what`, or ask for more space ({said})"
        case _:
            return f"the Hub answered {status} ({said})"


def retry_after(error: HfHubHTTPError) -> float | None:
    """Seconds that the Hub asks to wait."""
    return seconds_to_wait(error.response.headers.get("retry-after", "")) if error.response is not None else None


def seconds_to_wait(text: str) -> float | None:
    """What `Retry-After` says, a number of seconds or a date, in seconds; None when it says nothing."""
    if text.isdigit():
        return float(text)
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    wait = (date - datetime.datetime.now(date.tzinfo)).total_seconds()
    return wait if wait > 0 else None


def answer_in(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's refusal, also where the client has wrapped it, as it does while it uploads a large file."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def is_network_error(error: BaseException | None) -> bool:
    """True for what the HTTP client raises when no answer came, whichever client this version of the Hub uses."""
    names = ("TransportError", "ConnectionError", "TimeoutError")
    while error is not None and not any(kind.__name__ in names for kind in type(error).__mro__):
        error = error.__cause__
    return error is not None
