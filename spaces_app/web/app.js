// The page: what is asked and shown. What comes from a visitor or a model is set as text, never as HTML.

import { FILL, STOPS, collapse, inBlock, isShort } from "./judge.js";
import { asTrained, toText } from "./words.js";

const at = (id) => document.getElementById(id);
const ENDED = {
  block: "the block is done",
  end: "the model ended it",
  length: "the length was reached",
  stopped: "stopped by you",
};
const COPY_CHARACTERS = 6000;
const SHOWN_CHARACTERS = 6000;
const UNPRINTABLE = /[\x00-\x08\x0b-\x1f\x7f-\x9f]|\p{Surrogate}/gu;

const page = { engine: null, shots: [], running: null };

/** An element with text in it. */
function make(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

const size = (bytes) => (bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(2)} MB`);

function complain(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

async function json(file) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`${file} is not there (${answer.status}); the page was not copied whole`);
  return answer.json();
}

function showFacts(model) {
  const read = performance.getEntries().filter((entry) => !entry.name?.startsWith("blob:"));
  const wire = read.reduce((sum, entry) => sum + (entry.encodedBodySize || 0), 0);
  const threads = page.engine.threads === 1 ? "one thread" : `${page.engine.threads} threads`;
  const rows = [...model.facts];
  rows.push(["Came over the wire", `${size(wire)}: model, engine and page`]);
  rows.push(["Computes with", `${threads} of this device`]);
  at("facts").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
  if (!model.link) return;
  // In a new page: the Hub shows a Space in a frame, where its own pages refuse to load.
  const opened = { href: model.link, rel: "noopener noreferrer", target: "_blank" };
  const link = Object.assign(make("a", model.link), opened);
  const entry = make("dd", "");
  entry.append(link);
  at("facts").append(make("dt", "Card"), entry);
}

function showStarts({ shots, starts }) {
  page.shots = shots;
  for (const shot of shots) {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: shot.title });
    box.addEventListener("change", () => applyPicks());
    const label = make("label", "");
    label.append(box, ` ${shot.title}`);
    at("picks").append(label);
  }
  at("starts").append(...starts.map((start) => {
    const button = Object.assign(make("button", start.title), { type: "button" });
    button.addEventListener("click", () => take(start));
    return button;
  }));
  take(starts[0]);
}

function take(start) {
  at("prompt").value = /(?::|"""|''')$/.test(start.prompt) ? `${start.prompt}\n` : start.prompt;
  for (const box of at("picks").querySelectorAll("input")) box.checked = start.shots.includes(box.value);
  applyPicks();
}

/** Adds picked examples and takes unpicked ones out; what a visitor wrote stays. */
function applyPicks() {
  let text = at("examples").value;
  for (const box of at("picks").querySelectorAll("input")) {
    const { code } = page.shots.find((shot) => shot.title === box.value);
    if (box.checked && !text.includes(code)) text = text.trim() ? `${text.trimEnd()}\n\n\n${code}\n` : `${code}\n`;
    if (!box.checked) text = text.replace(code, "");
  }
  const blocks = text.split("\n\n\n").map((block) => block.replace(/^\n+|\n+$/g, "")).filter((block) => block.trim());
  at("examples").value = blocks.length ? `${blocks.join("\n\n\n")}\n` : "";
  hint();
}

function hint() {
  const prompt = at("prompt").value;
  const short = prompt.trim() && isShort(prompt, at("examples").value);
  const help = "Short prompt: one or two example functions before it decide how good the answer is.";
  at("hint").textContent = short ? help : "";
  at("hint").hidden = !short;
}

function markGap() {
  const box = at("prompt");
  const before = box.value.slice(0, box.selectionStart).replaceAll(FILL, "");
  const after = box.value.slice(box.selectionEnd).replaceAll(FILL, "");
  box.value = before + FILL + after;
  box.focus();
  box.setSelectionRange(before.length + FILL.length, before.length + FILL.length);
  hint();
}

/** What is asked, checked; a text where something is wrong with it. */
function asked() {
  const remarks = [];
  const clean = (text) => {
    const found = asTrained(text);
    const kept = found.replace(UNPRINTABLE, "");
    if (kept.length < found.length) remarks.push(`${found.length - kept.length} control characters were left out`);
    return kept;
  };
  const [prompt, examples] = [clean(at("prompt").value), clean(at("examples").value).trim()];
  if (!prompt.trim()) return "The prompt is empty. Write the beginning of some Python, or pick one of the starts.";
  if (examples.includes(FILL) || prompt.split(FILL).length > 2)
    return `${FILL} may stand once, in the prompt. Remove the others.`;
  const numbers = {};
  for (const id of ["length", "temperature", "top-p", "penalty", "seed"]) {
    const box = at(id);
    const limits = `must be between ${box.min} and ${box.max}, in steps of ${box.step}`;
    if (!box.value || !box.checkValidity()) return `${box.labels[0].textContent.trim()} ${limits}.`;
    numbers[id] = Number(box.value);
  }
  const [prefix, suffix = null] = prompt.split(FILL);
  const stops = at("one-block").checked && suffix === null && inBlock(prefix) ? STOPS : [];
  const { length, temperature, penalty, seed } = numbers;
  const text = examples ? `${examples}\n\n\n${prefix}` : prefix;
  return { prefix, remarks, prompt: text, suffix, length, temperature, topP: numbers["top-p"], penalty, seed, stops };
}

async function run() {
  if (!page.engine || page.running) return;
  const wish = asked();
  complain(typeof wish === "string" ? wish : "");
  if (typeof wish === "string") return;
  page.running = new AbortController();
  buttons();
  at("said").textContent = "Writing";
  at("code").setAttribute("aria-busy", "true");
  show(wish, "");
  let last = null;
  let painted = 0;
  try {
    for await (last of page.engine.complete(wish, page.running.signal)) {
      if (performance.now() - painted < 50) continue;
      painted = performance.now();
      show(wish, last.growth.text());
      chips(last, wish);
    }
    const text = last.growth.text();
    show(wish, text);
    chips(last, wish, await judged(last.growth, wish, text));
    at("said").textContent = `${last.growth.count} tokens, ${ENDED[last.growth.ended]}`;
  } catch (error) {
    complain(error.message);
    at("said").textContent = "";
  }
  at("code").removeAttribute("aria-busy");
  page.running = null;
  buttons();
}

async function judged(growth, wish, text) {
  const prompt = await page.engine.tokens(wish.prompt.slice(-COPY_CHARACTERS));
  const ids = await page.engine.tokens(text.trimEnd());
  return collapse({ ids, text, prompt, ended: growth.ended, fills: wish.suffix !== null });
}

function show(wish, text) {
  const code = make("code", wish.prefix.slice(-SHOWN_CHARACTERS));
  code.append(make("mark", text), (wish.suffix ?? "").slice(0, SHOWN_CHARACTERS));
  at("code").replaceChildren(code);
  page.written = text;
}

function chips({ growth, given, first, since }, wish, warning = "") {
  const found = [];
  const pace = Math.round(((growth.count - 1) / since) * 1000);
  if (growth.count > 1 && since > 0) found.push([`${pace.toLocaleString("en")} tokens/s`]);
  found.push([`first token ${Math.round(first)} ms`]);
  if (growth.ended) found.push([`${growth.count} tokens, ${ENDED[growth.ended]}`]);
  if (warning) found.push([warning, "bad"]);
  if (given.dropped) found.push([`The first ${given.dropped} tokens did not fit into the model's context`, "warn"]);
  found.push(...wish.remarks.map((remark) => [remark, "warn"]));
  at("chips").replaceChildren(...found.map(([text, kind]) => make("li", text, kind)));
}

function buttons() {
  at("complete").disabled = !page.engine || Boolean(page.running);
  at("stop").disabled = !page.running;
  at("copy").disabled = Boolean(page.running) || !page.written;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(page.written);
    at("said").textContent = "Copied";
  } catch {
    complain("The browser does not let this page copy; select the text and copy it yourself.");
  }
}

function listen() {
  at("form").addEventListener("submit", (event) => (event.preventDefault(), run()));
  at("stop").addEventListener("click", () => page.running?.abort());
  at("gap").addEventListener("click", markGap);
  at("copy").addEventListener("click", copy);
  for (const id of ["prompt", "examples"]) at(id).addEventListener("input", hint);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), run());
    if (event.key === "Escape") page.running?.abort();
  });
}

async function main() {
  listen();
  try {
    const [model, examples] = await Promise.all([json("model.json"), json("examples.json")]);
    at("title").textContent = model.name;
    document.title = `${model.name} in your browser`;
    showStarts(examples);
    const { Engine } = await import("./engine.js");
    page.engine = await Engine.load(model, {
      threads: Number(new URLSearchParams(location.search).get("threads")),
      onBytes: (got, all) => {
        at("progress").value = got / all;
        at("progress-text").textContent = `Fetching the model and its engine: ${size(got)} of ${size(all)}`;
      },
      onStart: () => {
        performance.mark("bytes");
        at("progress").removeAttribute("value");
        at("progress-text").textContent = "Starting the model";
      },
    });
    performance.mark("ready");
    showFacts(model);
    at("loading").hidden = true;
    at("gap").hidden = !page.engine.canFill;
    at("said").textContent = "The model is ready";
  } catch (error) {
    at("loading").hidden = true;
    complain(error.message);
  }
  buttons();
}

Object.assign(globalThis, { codenas: page, toText }); // for the console and the tests
main();
