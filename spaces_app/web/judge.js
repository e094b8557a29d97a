// What is said of a prompt before, and of a completion after it is written: by the rules and limits of the package
// (`spaces_app/completion.py`, `codenas_hf.measure.metrics`).

export const FILL = "<FILL_HERE>";
/** Where a completion of one function or class ends: `codenas_hf.generation.sampling.FUNCTION_STOPS`. */
export const STOPS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\n```"];
const SHORT_CHARACTERS = 160;
const BLOCK = /^(?:async[ \t]+)?(?:def|class)[ \t]/gm;
const FUNCTION = /^[ \t]*(?:async[ \t]+)?def[ \t]+\w+.*:[ \t]*(?:#.*)?\n(?:[ \t]*\n)*[ \t]+\S/m;

/** Whether the text has begun an indented block, so that the next top-level line ends it. */
export function inBlock(text) {
  const last = text.split("\n").filter((line) => line.trim()).at(-1) ?? "";
  return /^[ \t]/.test(last) || last.split("#")[0].trimEnd().endsWith(":");
}

/** Whether a small model has little to go by: no whole function before the place to complete, and not much text. */
export function isShort(prompt, examples) {
  const context = `${examples.trim()}\n${prompt.split(FILL)[0]}`;
  const begun = inBlock(context) ? [...context.matchAll(BLOCK)].at(-1) : undefined;
  const done = begun ? context.slice(0, begun.index) : context; // the function at hand is no example of itself
  return context.trim().length < SHORT_CHARACTERS && !FUNCTION.test(done);
}

/** The share of `items` that stood there before. */
function repeated(items) {
  return items.length ? 1 - new Set(items).size / items.length : 0;
}

/** The share of the tokens that ends them as three or more repeats of at most 64 tokens. */
export function loopShare(ids) {
  let best = 0;
  for (let period = 1; period <= Math.min(64, Math.floor(ids.length / 3)); period++) {
    let length = period;
    while (length < ids.length && ids[ids.length - 1 - length] === ids[ids.length - 1 - length + period]) length++;
    if (length >= 3 * period) best = Math.max(best, length);
  }
  return ids.length ? best / ids.length : 0;
}

/** The longest run of tokens that also stands in the prompt, as a share. */
export function copyShare(ids, prompt) {
  let row = new Array(prompt.length + 1).fill(0);
  let best = 0;
  for (const id of ids) {
    const next = row.map((_, at) => (at && prompt[at - 1] === id ? row[at - 1] + 1 : 0));
    best = Math.max(best, ...next);
    row = next;
  }
  return ids.length ? best / ids.length : 0;
}

/** What looks collapsed of a completion; empty where nothing does. */
export function collapse({ ids, text, prompt, ended, fills }) {
  const grams = ids.slice(3).map((_, at) => ids.slice(at, at + 4).join());
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  if (loopShare(ids) >= 0.5) return "It runs in a loop: try a higher repetition penalty or temperature";
  if (repeated(grams) > 0.6 || repeated(lines) > 0.4)
    return "It repeats itself: try a higher repetition penalty or temperature";
  if (ids.length > 4 && copyShare(ids, prompt) >= 0.6) return "It mostly copies the prompt: try other examples";
  const code = text.split("\n").some((line) => /\w/.test(line.split("#")[0]));
  const empty = !code && ended !== "stopped" && !fills;
  return empty ? "It wrote no code: try another seed, or an example that is closer" : "";
}
