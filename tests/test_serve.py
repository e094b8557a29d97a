"""`codenas serve`: OpenAI's completions API over one runtime, with the real client and with bad ones."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from evaluation_models import SPECIAL, TEXT, learn, tiny_model, tiny_tokenizer

from codenas_hf.cli.main import main
from codenas_hf.folders import Record
from codenas_hf.folders.record import Start, Training
from codenas_hf.generation.decode import SHIPPED, DecodeSettings, complete
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.generation.torch_runtime import TorchRuntime
from codenas_hf.jobs.opening import OpenModel, check_gaps
from codenas_hf.jobs.serve import ServeSettings, make_app, serve, served_name

PATIENCE_S = 60.0


@dataclass
class Served:
    """A running server."""

    url: str
    model: OpenModel
    line: Any

    def post(self, body: Any = None, **options: Any) -> httpx.Response:
        sent = {"content": options.pop("content")} if "content" in options else {"json": body}
        return httpx.post(f"{self.url}/v1/completions", timeout=PATIENCE_S, **sent, **options)


@contextlib.contextmanager
def served(model: OpenModel, **settings: Any) -> Iterator[Served]:
    app = make_app(model, name="tiny", settings=ServeSettings(**settings))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    handler = next(route for route in app.routes if route.path == "/v1/completions").endpoint
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", model, handler.__self__.line)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def scholar() -> OpenModel:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, seed=1, spread=0.05)
    learn(model, tokenizer, TEXT, steps=200)
    return OpenModel("tiny", TorchRuntime(model), tokenizer)


@pytest.fixture(scope="module")
def server(scholar: OpenModel) -> Iterator[Served]:
    with served(scholar, max_new_tokens=64) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Any:
    openai = pytest.importorskip("openai", reason="needs openai: pip install 'codenas-hf[test]'")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


PROMPT = TEXT[: TEXT.index("return first") + 7]


def wanted(server: Served, prompt: str = PROMPT, **settings: Any) -> Any:
    """What the package's own function gives."""
    given = {"max_new_tokens": 24, "temperature": 0.0, "repetition_penalty": SHIPPED.repetition_penalty} | settings
    suffix = given.pop("suffix", None)
    return complete(
        server.model.runtime, server.model.tokenizer, prompt, settings=DecodeSettings(**given), suffix=suffix
    )


def test_the_openai_client_reads_the_models(client: Any) -> None:
    import openai

    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "codenas"
    with pytest.raises(openai.NotFoundError, match="there is no model 'huge' here; this server has 'tiny'"):
        client.models.retrieve("huge")


def test_the_openai_client_completes(client: Any, server: Served) -> None:
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, temperature=0)
    own = wanted(server)
    assert found.choices[0].text == own.text != ""
    assert found.usage.completion_tokens == own.num_tokens
    assert found.usage.prompt_tokens == own.prompt_tokens
    assert found.usage.total_tokens == own.num_tokens + own.prompt_tokens


def test_the_openai_client_streams(client: Any, server: Served) -> None:
    events = list(
        client.completions.create(
            model="tiny",
            prompt=PROMPT,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, usage = events
    own = wanted(server)
    assert len(pieces) > 2
    assert "".join(event.choices[0].text for event in pieces) == own.text
    assert [event.choices[0].finish_reason for event in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    assert usage.choices == []
    assert usage.usage.completion_tokens == own.num_tokens
    assert len({event.id for event in events}) == 1


def test_the_openai_client_sees_what_is_wrong(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="`max_tokens` must be 1 to 64, got 65"):
        client.completions.create(model="tiny", prompt="x", max_tokens=65)
    with pytest.raises(openai.BadRequestError, match="`logprobs` is not supported here"):
        client.completions.create(model="tiny", prompt="x", logprobs=2)


def test_stop_suffix_and_seed_do_what_they_do_in_the_package(server: Served) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    stopped = server.post({**asked, "stop": ["\n\n\n", "second"]}).json()["choices"][0]
    own = wanted(server, stop=("\n\n\n", "second"))
    assert (stopped["text"], stopped["finish_reason"]) == (own.text, "stop")
    assert "second" not in own.text
    filled = server.post({**asked, "suffix": "\n\n\ndef double"}).json()["choices"][0]
    assert filled["text"] == wanted(server, suffix="\n\n\ndef double").text
    spelt = {**asked, "prompt": f"<|fim_prefix|>{PROMPT}<|fim_suffix|>\n\n\ndef double<|fim_middle|>"}
    assert server.post(spelt).json()["choices"][0]["text"] == filled["text"]
    drawn = {**asked, "temperature": 1.5, "top_p": 1}
    first, again, other = (server.post({**drawn, "seed": seed}).json()["choices"][0]["text"] for seed in (1, 1, 2))
    assert first == again != other
    assert first == wanted(server, temperature=1.5, seed=1).text


def test_many_prompts_and_many_samples(server: Served) -> None:
    body = {"prompt": [PROMPT, "def double("], "n": 2, "max_tokens": 8, "temperature": 1.5, "top_p": 1}
    whole = server.post(body).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in whole["choices"]]
    assert texts[0] != texts[1]
    streamed = [""] * 4
    for line in server.post({**body, "stream": True}).text.split("\n\n"):
        data = line.removeprefix("data: ")
        if data and data != "[DONE]":
            choice = json.loads(data)["choices"][0]
            streamed[choice["index"]] += choice["text"]
    assert streamed == texts


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "`prompt` is absent"),
        ({"prompt": 3}, "`prompt` must be text, or a list of up to 16 texts, got 3"),
        ({"prompt": []}, "`prompt` must be text"),
        ({"prompt": [[1, 2]]}, "`prompt` must be text"),
        ({"prompt": "\ud800"}, "`prompt` must be text"),
        ({"prompt": ["x"] * 9, "n": 2}, "9 prompts with n=2 are more than 16 completions"),
        ({"prompt": "x", "max_tokens": 0}, "`max_tokens` must be 1 to 64, got 0"),
        ({"prompt": "x", "max_tokens": True}, "`max_tokens` must be 1 to 64, got true"),
        ({"prompt": "x", "temperature": -1}, "`temperature` must be a number from 0 to 2, got -1"),
        ({"prompt": "x", "top_p": 0}, "`top_p` must be a number above 0, up to 1, got 0"),
        ({"prompt": "x", "stop": ["a", ""]}, "`stop` must be text, or a list of up to 16 texts, none empty"),
        ({"prompt": "x", "stream": "yes"}, "`stream` must be true or false, got "),
        ({"prompt": "x", "seed": -1}, "`seed` must be 0 or more, got -1"),
        ({"prompt": "x", "echo": True}, "`echo` is not supported here: leave it out"),
        ({"prompt": "x", "n_predict": 4}, "this server does not know `n_predict`"),
        ([1], "the body must be an object, got [1]"),
    ],
)
def test_what_is_asked_wrongly_is_named(body: Any, message: str, server: Served) -> None:
    content = json.dumps(body).encode()
    answer = server.post(content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_who_may_ask(server: Served) -> None:
    """A page in a browser can send forms and plain text to this machine, under any name that leads here."""
    body = json.dumps({"prompt": "x"})
    assert server.post(content=body, headers={"content-type": "text/plain"}).status_code == 415
    assert server.post({"prompt": "x"}, headers={"host": "evil.example"}).status_code == 400
    for body in ("{", "[" * 100_000):
        assert server.post(content=body, headers={"content-type": "application/json"}).status_code == 400
    assert server.post({"prompt": "x", "model": "other"}).status_code == 404
    assert server.post({"prompt": "x" * (1 << 20)}).status_code == 413
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    assert httpx.get(f"{server.url}/nothing").json()["error"]["type"] == "invalid_request_error"
    assert server.line.inside == 0


def test_a_model_without_a_gap_says_so() -> None:
    tokenizer = tiny_tokenizer(special=[SPECIAL[0], SPECIAL[-1]])
    model = OpenModel("tiny", TorchRuntime(tiny_model(tokenizer)), tokenizer)
    with served(model) as running:
        for stream in (False, True):
            answer = running.post({"prompt": "x", "suffix": "y", "stream": stream})
            assert answer.status_code == 400
            assert "`suffix` needs a model trained to fill in the middle" in answer.json()["error"]["message"]
        assert running.post({"prompt": "x", "max_tokens": 2}).status_code == 200


def test_a_model_that_never_saw_a_gap_says_so(tmp_path: Path) -> None:
    """Its tokenizer has the tokens, as all of ours have; what the record says of its training decides."""
    tokenizer = tiny_tokenizer()
    model = OpenModel(str(tmp_path), TorchRuntime(tiny_model(tokenizer)), tokenizer)
    gap = {"prompt": "<|fim_prefix|>x<|fim_suffix|>y<|fim_middle|>", "max_tokens": 2}
    for rate, start, status in (
        (0.0, None, 400),
        (0.5, None, 200),
        (None, None, 200),
        (0.0, Start(folder="a", weights="b"), 200),
    ):
        Record(training=Training(fim_rate=rate), start=start).write(tmp_path)
        with served(model) as running:
            for body in ({"prompt": "x", "suffix": "y", "max_tokens": 2}, gap):
                answer = running.post(body)
                assert answer.status_code == status, (rate, start)
                assert status == 200 or "train with train.fim_rate=0.5" in answer.json()["error"]["message"]


def test_what_a_file_of_a_release_was_trained_for_stands_beside_it(tmp_path: Path) -> None:
    Record(training=Training(fim_rate=0.0)).write(tmp_path)
    file = tmp_path / "model-q8_0.gguf"
    file.touch()
    with pytest.raises(ValueError, match=r"train with train.fim_rate=0.5"):
        check_gaps(str(file))
    check_gaps("owner/model")  # of which nothing is known


def test_all_completions_of_a_request_share_its_time(scholar: OpenModel) -> None:
    class Slow(Runtime):
        """Twenty tokens a second at most."""

        def _compute(self, ids: list[int]) -> Any:
            time.sleep(0.05)
            return scholar.runtime.logits(ids)

        def _forget(self, length: int) -> int:
            return 0

    slow = Slow("slow", context_tokens=None)
    with served(OpenModel("tiny", slow, scholar.tokenizer), max_seconds=0.5) as running:
        answer = running.post({"prompt": PROMPT, "n": 16, "temperature": 1.0, "max_tokens": 60, "stop": "\0"}).json()
    assert len(answer["choices"]) == 16
    # The first one has half a second, each of the others a token (and what healing draws before it looks).
    assert answer["usage"]["completion_tokens"] < 16 * 5


def test_a_port_that_there_is_not(scholar: OpenModel) -> None:
    with pytest.raises(ValueError, match="`port` must be from 0 to 65535, got 70000"):
        serve(scholar, port=70_000)


class Held(Runtime):
    """Gives each token only when it is let."""

    def __init__(self, size: int, token: int) -> None:
        super().__init__("held", context_tokens=None)
        self.size, self.token, self.let = size, token, threading.Semaphore(0)
        self.asked = threading.Semaphore(0)

    def _compute(self, ids: list[int]) -> Any:
        self.asked.release()
        assert self.let.acquire(timeout=PATIENCE_S)
        logits = np.zeros(self.size, np.float32)
        logits[self.token] = 1
        return logits

    def _forget(self, length: int) -> int:
        return length


@pytest.fixture
def held() -> OpenModel:
    tokenizer = tiny_tokenizer()
    return OpenModel("held", Held(len(tokenizer), tokenizer("x")["input_ids"][0]), tokenizer)


def until(true: Any) -> None:
    """Waits for something that must come."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_completion(stream: bool, held: OpenModel) -> None:
    runtime: Any = held.runtime
    with served(held) as running:
        body = {"prompt": "a", "max_tokens": 200, "repetition_penalty": 1, "stream": stream, "temperature": 0}
        with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as leaver:
            content = json.dumps(body)
            leaver.sendall(
                f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                f"content-length: {len(content)}\r\n\r\n{content}".encode()
            )
            for _ in range(3):  # tokens: it is on its way
                assert runtime.asked.acquire(timeout=PATIENCE_S)
                runtime.let.release()
        for _ in range(4):  # the token at hand, and what was asked for before the loss was seen
            runtime.let.release()
        until(lambda: running.line.inside == 0)
        assert runtime.computed_tokens < 20
        for _ in range(9):
            runtime.let.release()
        assert running.post({**body, "max_tokens": 2, "stream": False}).json()["choices"][0]["text"] == "xx"


def test_who_leaves_the_queue_gives_up_the_place(held: OpenModel) -> None:
    runtime: Any = held.runtime
    with served(held, max_waiting=1) as running, concurrent.futures.ThreadPoolExecutor() as pool:
        body = {"prompt": "a", "max_tokens": 1, "temperature": 0}
        first = pool.submit(running.post, body)
        assert runtime.asked.acquire(timeout=PATIENCE_S)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/v1/completions", json=body, timeout=0.2)
        until(lambda: running.line.inside == 1)
        second = pool.submit(running.post, body)
        until(lambda: running.line.inside == 2)
        refused = running.post(body)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert "2 requests are waiting already" in refused.json()["error"]["message"]
        for _ in range(4):
            runtime.let.release()
        assert first.result().status_code == second.result().status_code == 200
        until(lambda: running.line.inside == 0)


def resident_bytes() -> int:
    """Memory of this process, in which the server runs."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])


def test_fifty_clients_are_all_served_in_their_order(scholar: OpenModel) -> None:
    def ask(number: int) -> tuple[int, int]:
        answer = running.post({"prompt": PROMPT + " " * number, "max_tokens": 8, "temperature": 0})
        return answer.status_code, len(answer.json().get("choices", []))

    with served(scholar, max_waiting=49) as running, concurrent.futures.ThreadPoolExecutor(50) as pool:
        assert set(pool.map(ask, range(50))) == {(200, 1)}
        assert running.line.inside == 0
        before = resident_bytes()
        for _ in range(3):
            assert set(pool.map(ask, range(50))) == {(200, 1)}
        assert resident_bytes() - before < 50e6, "fifty more clients find room in what fifty left"


def test_beyond_the_queue_every_client_is_told_and_none_starves(held: OpenModel) -> None:
    runtime: Any = held.runtime
    with served(held, max_waiting=9) as running, concurrent.futures.ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(running.post, {"prompt": f"a{n}", "max_tokens": 1}) for n in range(50)]
        until(lambda: sum(one.done() for one in asked) == 40)
        assert running.line.inside == 10
        for _ in range(50):
            runtime.let.release()
        codes = sorted(one.result().status_code for one in asked)
        assert codes == [200] * 10 + [429] * 40


def test_what_a_model_is_called(tmp_path: Path, held: OpenModel) -> None:
    (tmp_path / "study" / "winner").mkdir(parents=True)
    (tmp_path / "tiny.gguf").touch()
    names = {
        tmp_path / "study" / "winner": "study",
        tmp_path / "study": "study",
        tmp_path / "tiny.gguf": "tiny",
        Path("me/codelm-1.5M"): "codelm-1.5M",
    }
    for place, name in names.items():
        assert served_name(OpenModel(str(place), held.runtime, held.tokenizer)) == name


def test_the_verb_says_where_it_listens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], held: OpenModel
) -> None:
    monkeypatch.setattr("codenas_hf.jobs.opening.open_runtime", lambda *words, **options: held)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    assert main(["serve", "./m", "--port", "0", "--name", "mine"]) == 0
    assert "serving   mine in held\nat        http://127.0.0.1:" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "./m", "--port", port]) == 2
        assert f"port {port} of 127.0.0.1 cannot be had" in capsys.readouterr().err
    assert main(["serve", "./m", "--max-waiting", "-1"]) == 2
