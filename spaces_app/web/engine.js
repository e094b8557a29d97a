// The model in this browser: its file fetched and checked, llama.cpp (wllama) started, completions drawn from it.

import { Growth, Words, asTrained } from "./words.js";
import { LoggerWithoutDebug, Wllama } from "./engine/wllama.js";

/** Something that the visitor is told, with what to do about it. */
export class Problem extends Error {}

const MEMORY = /memory|allocat|array buffer|RangeError|failed to (?:create|grow)/i;
// Barriers between threads cost a small model more than it gains.
const ONE_THREAD_BYTES = 20e6;
const MOST_CONTEXT = 4096;

/**
 * Fetches a file and checks it, piece by piece: what has come lies in a blob, which the browser may keep on disk, so
 * that a large model is not held twice beside the memory that it computes in.
 * @param {{file: string, bytes: number, piece: number, sha256: string[]}} wanted a hash for each `piece` bytes
 * @param {(more: number) => void} onBytes told of bytes as they arrive
 * @returns {Promise<Blob>}
 */
async function fetchFile({ file, bytes, piece, sha256 }, onBytes) {
  const answer = await fetch(file).catch(() => null);
  if (!answer) throw new Problem(`${file} cannot be fetched: is the connection there? Load the page again.`);
  if (!answer.ok) throw new Problem(`${file} is not there (${answer.status}): this page was not copied whole.`);
  const again = "Load the page again; if it stays so, build the page anew.";
  const blobs = [];
  const held = new Uint8Array(Math.min(piece, bytes));
  let filled = 0;
  const settle = async () => {
    const content = held.subarray(0, filled);
    // A page that came neither over https nor from this computer has no `crypto.subtle`: there the length must do.
    if (crypto.subtle && (await hash(content)) !== sha256[blobs.length])
      throw new Problem(`${file} is damaged. ${again}`);
    blobs.push(new Blob([content]));
    filled = 0;
  };
  const reader = answer.body.getReader();
  const next = () =>
    reader.read().catch(() => {
      throw new Problem(`${file} broke off on its way. Load the page again.`);
    });
  for (let step; !(step = await next()).done; onBytes(step.value.length)) {
    for (let from = 0; from < step.value.length; ) {
      const more = step.value.subarray(from, from + held.length - filled);
      held.set(more, filled);
      filled += more.length;
      from += more.length;
      if (filled === held.length) await settle();
    }
  }
  if (filled) await settle();
  const blob = new Blob(blobs, { type: file.endsWith(".wasm") ? "application/wasm" : "" });
  if (blob.size === bytes) return blob;
  throw new Problem(`${file} is damaged (${blob.size} bytes of ${bytes}). ${again}`);
}

async function hash(content) {
  const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(sum, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Engine {
  /**
   * Fetches and starts a model.
   * @param {object} model as `model.json` has it
   * @param {{threads: number, onBytes: (got: number, all: number) => void, onStart: () => void}} told `threads` of the
   *   computation, 0 for what suits the model; and what to call while it loads
   * @throws {Problem} no WebAssembly, no file, a damaged one, or too little memory
   */
  static async load(model, { threads, onBytes, onStart }) {
    if (typeof WebAssembly !== "object")
      throw new Problem("This browser has no WebAssembly, or it is off. Use a current browser, or switch it on.");
    const suits = model.bytes > ONE_THREAD_BYTES ? Math.min(4, navigator.hardwareConcurrency >> 1) : 1;
    const n_threads = self.crossOriginIsolated ? Math.max(1, threads || suits) : 1;
    const engine = model.engine[n_threads > 1 ? "threads" : "one"];
    let got = 0;
    const more = (bytes) => onBytes((got += bytes), model.bytes + engine.bytes);
    const [weights, program] = await Promise.all([fetchFile(model, more), fetchFile(engine, more)]);
    onStart();
    const at = URL.createObjectURL(program);
    const quiet = { ...LoggerWithoutDebug, warn: () => {}, log: () => {} };
    const paths = { "single-thread/wllama.wasm": at, "multi-thread/wllama.wasm": at };
    const wllama = new Wllama(paths, { suppressNativeLog: true, logger: quiet });
    try {
      const n_ctx = Math.min(model.context, MOST_CONTEXT);
      await wllama.loadModel([weights], { n_ctx, n_threads, seed: 1 });
    } catch (error) {
      throw said(error, "The model does not start");
    }
    const { meta, hparams } = wllama.getModelMetadata();
    // wllama 2.4 puts as many empty pieces in front of the real ones.
    const pieces = (await wllama.getVocab()).slice(-hparams.nVocab);
    const words = new Words(pieces, { ...model, pre: meta["tokenizer.ggml.pre"] });
    return new Engine(wllama, words, meta, model.fills_gaps);
  }

  constructor(wllama, words, meta, fillsGaps) {
    const id = (name) => Number(meta[`tokenizer.ggml.${name}_token_id`] ?? -1);
    this.wllama = wllama;
    this.words = words;
    this.context = wllama.getLoadedContextInfo().n_ctx;
    this.threads = wllama.getNumThreads();
    // Where a text's start token is its end token, each document of the training text followed one.
    this.start = id("bos") >= 0 && id("bos") === id("eos") ? [id("bos")] : [];
    this.fim = [id("fim_pre"), id("fim_suf"), id("fim_mid")];
    // The tokens of a gap are there even where training never showed one.
    this.canFill = fillsGaps !== false && this.fim.every((token) => token >= 0);
  }

  /** Tokens of a text; what looks like a special token in it stays text. */
  tokens(text) {
    return text ? this.wllama.tokenize(text, false) : Promise.resolve([]);
  }

  /** What the model is given: tokens, bytes that are still to be spelt, and how many tokens did not fit. */
  async prepare(prompt, suffix, most) {
    const room = this.context - Math.min(most, Math.max(1, this.context >> 1));
    const before = await this.tokens(prompt);
    if (suffix === null) {
      const healed = this.words.heal(prompt, before);
      const dropped = Math.max(0, this.start.length + healed.ids.length - room);
      const all = [...this.start, ...healed.ids];
      const kept = dropped ? healed.ids.slice(Math.max(0, dropped - this.start.length)) : all;
      return { ...healed, ids: kept, dropped };
    }
    const after = await this.tokens(suffix);
    const dropped = Math.max(0, this.start.length + before.length + after.length + 3 - room);
    // What is near the gap stays.
    const fromAfter = Math.min(after.length, Math.max(0, dropped - (before.length >> 1)));
    const [open, next, middle] = this.fim;
    const gap = [...before.slice(dropped - fromAfter), next, ...after.slice(0, after.length - fromAfter), middle];
    return { ids: [...this.start, open, ...gap], pending: "", removed: 0, dropped };
  }

  /**
   * Completes a prompt as `codenas_hf.generation.decode` does, and yields what is there after each token.
   * @param {{prompt: string, suffix: string|null, length: number, temperature: number, topP: number, penalty: number,
   *   seed: number, stops: string[]}} asked `suffix` is what stands after a gap; null goes on from the prompt
   * @param {AbortSignal} signal ends it after the token at hand
   * @throws {Problem} the model cannot fill gaps, or memory is short
   */
  async *complete(asked, signal) {
    const start = performance.now();
    const suffix = asked.suffix === null ? null : asTrained(asked.suffix);
    const prompt = asTrained(asked.prompt);
    if (suffix !== null && !this.canFill)
      throw new Problem("This model was not trained to fill gaps. Take the mark out to continue the text instead.");
    const given = await this.prepare(prompt, suffix, asked.length);
    const ids = [...given.ids];
    if (!ids.length) throw new Problem("The model has no start token: write at least one character.");
    const growth = new Growth(given, { stops: asked.stops, most: asked.length });
    const steps = asked.length + given.removed + 4 * Boolean(given.pending);
    let first = 0;
    const most = Math.max(1, Math.min(steps, this.context - given.ids.length));
    try {
      await this.wllama.kvClear();
      await this.wllama.decode(ids, {});
      for (let step = 0, limited = null; step < most; step++) {
        if (limited !== growth.pending) await this.choose(asked, ids, (limited = growth.pending), step);
        const { token } = await this.wllama.samplingSample();
        ids.push(token);
        growth.push(token, this.words);
        first ||= performance.now();
        if (!growth.ended && signal?.aborted) growth.ended = "stopped";
        yield { growth, given, first: first - start, since: performance.now() - first };
        if (growth.ended) return;
        await this.wllama.samplingAccept([token]);
        await this.wllama.decode([token], {});
      }
      growth.ended = "length";
      yield { growth, given, first: first - start, since: performance.now() - first };
    } catch (error) {
      throw said(error, "The model stopped");
    }
  }

  /** Sets how the next tokens are chosen: while `pending` is to be spelt, only among those that spell it. */
  async choose({ temperature, topP, penalty, seed }, ids, pending, step) {
    const allowed = pending ? new Set(this.words.spelling(pending)) : null;
    const may = (token) => token < this.words.entries && (!allowed || allowed.has(token));
    const logit_bias = this.words.bytes.flatMap((_, token) => (may(token) ? [] : [{ token, bias: -Infinity }]));
    const greedy = temperature <= 0;
    const kept = greedy ? { top_k: 1, top_p: 1 } : { top_k: 0, top_p: topP };
    const repeats = { penalty_repeat: penalty, penalty_last_n: 64 };
    await this.wllama.samplingInit({ temp: temperature, min_p: 0, ...kept, ...repeats, logit_bias }, ids);
    // The sampler begins with the same random number each time: so many are drawn as seed and steps say.
    if (!greedy) for (let draw = 0; draw < seed + step; draw++) await this.wllama.samplingSample();
  }
}

/** An error of the engine in words, with what to do. */
function said(error, what) {
  if (error instanceof Problem) return error;
  const text = String(error?.message ?? error).split("\n")[0];
  if (MEMORY.test(`${error?.name} ${text}`))
    return new Problem(`${what}: this device is short of memory (${text}). Close other pages, or use a smaller model.`);
  return new Problem(`${what}: ${text}. Load the page again.`);
}
