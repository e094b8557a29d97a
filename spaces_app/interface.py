"""The playground's page: components, and what happens when they are used."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from chooser import PlaygroundError, PlaygroundSettings, find_models, may_bring_code
from completion import FILL, Completer, CompletionRequest, prepare
from display import hint_html, panel_html, waiting_html
from endpoints import add_endpoints
from picture import about_html, card_markdown
from sessions import Sessions
from shots import apply_picks, read_examples, with_line_end

from codenas_hf.generation.decode import SHIPPED

HERE = Path(__file__).parent
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
COPY_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('.copy');
  if (!button) return;
  const code = button.closest('.panel').querySelectorAll('mark');
  navigator.clipboard.writeText(Array.from(code, (mark) => mark.textContent).join(''));
  button.textContent = 'Copied';
});
"""
MARKER_JS = f"""
() => {{
  const editor = document.querySelector('#prompt .cm-content');
  editor.focus();
  document.execCommand('insertText', false, '{FILL}');
}}
"""
KEYS_JS = """
() => {
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation();
      document.querySelector('#complete').click();
    }
  }, true);
}
"""


def shown_error(error: PlaygroundError, *, title: str = "That did not work") -> gr.Error:
    """The error for a person's eyes: escaped, for Gradio shows messages as HTML."""
    return gr.Error(escape(str(error)), title=title, print_exception=False)


def notice_html(settings: PlaygroundSettings) -> str:
    """What to do where nothing is on offer; empty otherwise."""
    if find_models(settings):
        return ""
    more = (
        "<p>Or name a model below: a folder that <code>save_pretrained</code> wrote, or a Hub id such as "
        "<code>HuggingFaceTB/SmolLM2-135M</code>; it is fetched when you press Complete.</p>"
        if settings.any_model
        else "<p>Whoever runs this playground can name models with <code>--model</code>.</p>"
    )
    return (
        f'<div class="notice"><p><b>Nothing trained yet.</b> No winner lies under <code>{escape(str(settings.runs))}'
        "</code>. Search for one: <code>accelerate launch recipes/search_two_stage.py</code></p>"
        f"{more}</div>"
    )


class Page:
    """The page's components and their handlers."""

    def __init__(self, settings: PlaygroundSettings) -> None:
        self.settings = settings
        self.completer = Completer(settings)
        self.sessions = Sessions()
        self.shots, self.starts = read_examples()

    def build(self) -> gr.Blocks:
        """The whole demo with its queue, API and tools; nothing is launched."""
        with gr.Blocks(title="codenas playground", analytics_enabled=False) as demo:
            gr.HTML(
                "<h1>codenas playground</h1><p>Small code models, found by evolution. Write the beginning of some "
                "Python, show the model an example or two, and see what a few megabytes can do.</p>",
                elem_id="masthead",
            )
            notice = notice_html(self.settings)
            self.notice = gr.HTML(notice, visible=bool(notice), elem_id="notice")
            with gr.Row(equal_height=False):
                with gr.Column(scale=7, min_width=320):
                    self._build_models()
                    self._build_editor()
                    with gr.Row(equal_height=False, elem_id="outputs"):
                        self.left = self._build_output("left", "The completion appears here.", visible=True)
                        self.right = self._build_output("right", "The second model's appears here.", visible=False)
                with gr.Column(scale=4, min_width=320):
                    self._build_examples()
                    self._build_sampling()
                    with gr.Accordion("About the model", open=True):
                        self.about = gr.HTML(elem_id="about")
                        with gr.Accordion("Card", open=False):
                            self.card = gr.Markdown(elem_id="card", sanitize_html=True)
            self._connect(demo)
            add_endpoints(self.completer)
        return demo.queue(max_size=self.settings.max_waiting, default_concurrency_limit=4)

    def _build_models(self) -> None:
        choices = find_models(self.settings)
        any_model = self.settings.any_model
        options: dict[str, Any] = {"choices": choices, "allow_custom_value": any_model, "filterable": True}
        label = "Model (or type a folder or Hub id)" if any_model else "Model"
        with gr.Row(equal_height=True, elem_id="models"):
            self.model = gr.Dropdown(
                **options,
                value=choices[0][1] if choices else None,
                label=label,
                scale=3,
                min_width=220,
                elem_id="model",
            )
            self.second = gr.Dropdown(
                **options,
                value=choices[min(1, len(choices) - 1)][1] if choices else None,
                label="Second model",
                scale=3,
                min_width=220,
                visible=False,
                elem_id="second",
            )
            self.compare = gr.Checkbox(False, label="Compare two", scale=1, min_width=140, elem_id="compare")
        self.consent = gr.Checkbox(
            False,
            label="I trust this model: code that comes with it may run on this computer",
            visible=False,
            elem_id="consent",
        )

    def _build_editor(self) -> None:
        with gr.Row(elem_id="starts"):
            gr.HTML("Start from", elem_classes="from")
            self.start_buttons = [gr.Button(start["title"], size="sm", min_width=0) for start in self.starts]
        start = self.starts[0]
        self.prompt = gr.Code(
            start["prompt"], language="python", label="Prompt", lines=6, max_lines=22, elem_id="prompt", buttons=[]
        )
        with gr.Row(elem_id="actions"):
            self.go = gr.Button("Complete", variant="primary", scale=3, min_width=120, elem_id="complete")
            self.halt = gr.Button("Stop", scale=1, min_width=70, elem_id="stop")
            self.cancel = gr.Button("Cancel", visible="hidden", elem_id="cancel")
            self.marker = gr.Button("Mark a gap", scale=2, min_width=110, elem_id="marker")
        with gr.Row(equal_height=True, visible=False, elem_id="hint") as self.hint_row:
            self.hint = gr.HTML(scale=4, min_width=240)
            self.add = gr.Button("Add two examples", size="sm", scale=1, min_width=130, elem_id="add")

    def _build_output(self, name: str, text: str, *, visible: bool) -> gr.HTML:
        return gr.HTML(
            waiting_html(text),
            visible=visible,
            elem_id=name,
            js_on_load=COPY_JS,
            min_height=150,
            min_width=300,
            apply_default_css=False,
        )

    def _build_examples(self) -> None:
        picked = self.starts[0]["shots"]
        with gr.Accordion("Examples the model reads first", open=True):
            self.picks = gr.CheckboxGroup(
                list(self.shots), value=picked, show_label=False, container=False, elem_id="picks"
            )
            self.editor = gr.Code(
                apply_picks("", picked, self.shots),
                language="python",
                label="Your examples (edit them, or write your own)",
                lines=6,
                max_lines=16,
                elem_id="shots",
                buttons=[],
            )

    def _build_sampling(self) -> None:
        top = self.settings.max_new_tokens
        with gr.Accordion("Sampling", open=False, elem_id="sampling"):
            self.sampling = [
                gr.Slider(1, top, min(128, top), step=1, label="Length in tokens", elem_id="length"),
                gr.Slider(
                    0,
                    2,
                    SHIPPED.temperature,
                    step=0.05,
                    label="Temperature",
                    info="0 takes the likeliest token each time",
                ),
                gr.Slider(
                    0.01, 1, SHIPPED.top_p, step=0.01, label="Top-p", info="draw from this much of the probability"
                ),
                gr.Slider(
                    0, 1, 0, step=0.01, label="Min-p", info="leave out tokens below this share of the likeliest"
                ),
                gr.Slider(1, 2, SHIPPED.repetition_penalty, step=0.01, label="Repetition penalty", info="1 is off"),
                gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, info="same seed, same text"),
                gr.Checkbox(True, label="End with the function or class that the prompt has begun", elem_id="block"),
            ]

    def _connect(self, demo: gr.Blocks) -> None:
        models = [self.model, self.second, self.compare]
        run = self.go.click(
            self.on_complete,
            [self.prompt, self.editor, *models, self.consent, *self.sampling],
            [self.left, self.right, self.about, self.card],
            api_visibility="private",
            concurrency_limit=self.settings.concurrency,
            concurrency_id="model",
            show_progress="full",
            show_progress_on=[self.left],
            trigger_mode="once",
        )
        # First the soft end, which shows and judges what is there; then what still waits in the queue is taken out.
        # Gradio 6 ignores `cancels` in `.then`, so the second step presses a button that nobody sees.
        stopping = self.halt.click(self.on_stop, None, None, queue=False, **HIDDEN)
        stopping.then(None, None, None, js="() => document.querySelector('#cancel').click()")
        self.cancel.click(None, None, None, cancels=[run])
        demo.unload(self.on_leave)
        demo.load(self.on_load, None, [self.model, self.second, self.notice], queue=False, **HIDDEN)
        demo.load(None, None, None, js=KEYS_JS)
        self.marker.click(None, None, None, js=MARKER_JS)
        about = {"inputs": models, "outputs": [self.right, self.second, self.consent, self.about, self.card], **HIDDEN}
        gr.on([self.model.change, self.second.change, self.compare.change, demo.load], self.on_models, **about)
        hints = {"inputs": [self.prompt, self.editor], "outputs": [self.hint_row, self.hint], "queue": False, **HIDDEN}
        changes = [self.prompt.change, self.editor.change, demo.load]
        gr.on(changes, self.on_text, trigger_mode="always_last", **hints)
        self.picks.input(self.on_pick, [self.picks, self.editor], self.editor, queue=False, **HIDDEN)
        self.add.click(self.on_add, [self.picks, self.editor], [self.picks, self.editor], queue=False, **HIDDEN)
        for button, start in zip(self.start_buttons, self.starts, strict=True):
            values = (start["prompt"], start["shots"], apply_picks("", start["shots"], self.shots))
            button.click(
                lambda values=values: values, None, [self.prompt, self.picks, self.editor], queue=False, **HIDDEN
            )

    def on_complete(
        self,
        prompt: str,
        examples: str,
        source: str | None,
        second: str | None,
        compare: bool,
        consent: bool,
        length: float,
        temperature: float,
        top_p: float,
        min_p: float,
        penalty: float,
        seed: float,
        one_block: bool,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Streams one completion, or two one after the other so that each is timed alone."""
        session = request.session_hash or ""
        stop = self.sessions.start(session)
        try:
            prepared = prepare(
                CompletionRequest(
                    prompt=with_line_end(prompt or ""),
                    examples=examples or "",
                    max_new_tokens=length,
                    temperature=temperature,
                    top_p=top_p,
                    min_p=min_p,
                    repetition_penalty=penalty,
                    seed=seed,
                    one_block=one_block,
                ),
                settings=self.settings,
            )
            sources = [source or "", second or ""] if compare else [source or ""]
            loaded = [self.completer.shelf.load(name, consent=consent) for name in sources]
            about = "".join(about_html(model) for model in loaded)
            cards = "\n\n---\n\n".join(card_markdown(model) for model in loaded)
            panels = [gr.skip(), waiting_html("Waits until the first model is done.") if compare else gr.skip()]
            for index, name in enumerate(sources):
                run = self.completer.run(name, prepared, consent=consent, stopped=stop.is_set)
                for progress in run:
                    panels[index] = panel_html(progress)
                    yield panels[0], panels[1], about, cards
                    panels[0], panels[1], about, cards = gr.skip(), gr.skip(), gr.skip(), gr.skip()
        except PlaygroundError as error:
            raise shown_error(error) from error
        finally:
            self.sessions.finish(session)

    def on_stop(self, request: gr.Request) -> None:
        """Ends this visitor's completion after the token at hand."""
        self.sessions.stop(request.session_hash or "")

    def on_leave(self, request: gr.Request) -> None:
        """The visitor closed the page: nobody reads the rest."""
        self.sessions.stop(request.session_hash or "", wait_s=0)

    def on_load(self) -> tuple[Any, Any, Any]:
        """Winners that were trained since the playground started are on offer at the next visit."""
        choices = find_models(self.settings)
        first = choices[0][1] if choices else None
        other = choices[min(1, len(choices) - 1)][1] if choices else None
        update = {"choices": choices}
        notice = notice_html(self.settings)
        shown = gr.update(value=notice, visible=bool(notice))
        return gr.update(**update, value=first), gr.update(**update, value=other), shown

    def on_models(self, source: str | None, second: str | None, compare: bool) -> tuple[Any, Any, Any, Any, Any]:
        """Shows what belongs to the choice: the second panel, the question of trust, picture and card."""
        chosen = [name for name in ([source, second] if compare else [source]) if name]
        asks = self.settings.any_model and not self.settings.trust_remote_code and any(map(may_bring_code, chosen))
        pictures, cards = [], []
        for name in dict.fromkeys(chosen):
            # A Hub id is fetched when somebody asks for a completion, not when its name is typed.
            if not Path(name).is_dir():
                pictures.append(waiting_html(f"{name[:100]} is loaded when you press Complete."))
                continue
            try:
                loaded = self.completer.shelf.load(name)
                pictures.append(about_html(loaded))
                cards.append(card_markdown(loaded))
            except PlaygroundError as error:
                pictures.append(waiting_html(str(error)))
        show = gr.update(visible=bool(compare))
        return show, show, gr.update(visible=asks), "".join(pictures), "\n\n---\n\n".join(cards)

    def on_text(self, prompt: str | None, examples: str | None) -> tuple[Any, str]:
        """The hint about a short prompt, as long as it holds."""
        hint = hint_html((prompt or "")[:2000], (examples or "")[:2000])
        return gr.update(visible=bool(hint)), hint

    def on_pick(self, picked: list[str], text: str | None) -> str:
        """A picked example enters the editor, an unpicked one leaves it."""
        return apply_picks(text or "", picked, self.shots)

    def on_add(self, picked: list[str], text: str | None) -> tuple[list[str], str]:
        """Two more examples."""
        more = [*picked, *[title for title in self.shots if title not in picked][:2]]
        return more, apply_picks(text or "", more, self.shots)


def build_demo(settings: PlaygroundSettings) -> gr.Blocks:
    """The playground as a Gradio Blocks, ready to launch with `launch_options()`."""
    return Page(settings).build()


def launch_options() -> dict[str, Any]:
    """Looks, and what a launch needs besides an address."""
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    theme = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=mono).set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_label_background_fill="none",
        block_label_background_fill_dark="none",
        block_label_text_color="*neutral_500",
        block_label_text_color_dark="*neutral_400",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_text_color="*neutral_500",
        block_title_text_color_dark="*neutral_400",
        block_border_width="1px",
        block_shadow="none",
    )
    return {
        "theme": theme,
        "css_paths": HERE / "style.css",
        "footer_links": ["api"],
        "run_history": False,
        "ssr_mode": False,
        "show_error": True,
    }
