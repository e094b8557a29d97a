// The bytes behind each token, and where a prompt may be cut (`codenas_hf.generation.token_text`): a prompt that ends
// inside what the tokenizer writes as one token is cut back, and the first new tokens have to spell what was cut.
// Bytes are kept as strings of one letter per byte, which JavaScript finds, slices and compares by itself.

const encoder = new TextEncoder();

export const toBytes = (text) => lettersOf(encoder.encode(text));
export const lettersOf = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
const bytesOf = (letters) => Uint8Array.from(letters, (letter) => letter.charCodeAt(0));

/** Text of bytes; unless `whole`, half a character at the end is left out. What is no UTF-8 becomes U+FFFD. */
export function toText(letters, { whole = true } = {}) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytesOf(letters), { stream: !whole });
}

/** A text as training text was read: no byte order mark, `\n` line ends. */
export const asTrained = (text) => text.replace(/^\ufeff/, "").replace(/\r\n?/g, "\n");

const TAIL = "| ?[^\\s\\p{L}\\p{N}]+";
const QWEN2 =
  "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" +
  `${TAIL}[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const GPT2 = `'(?:[stmd]|re|ve|ll)| ?\\p{L}+| ?\\p{N}+${TAIL}|\\s+(?!\\S)|\\s+`;
// How a tokenizer splits text first, by llama.cpp's name for it (`tokenizer.ggml.pre`).
const SPLITS = {
  qwen2: [QWEN2],
  "llama-bpe": [QWEN2.replace("|\\p{N}|", "|\\p{N}{1,3}|")],
  "gpt-2": [GPT2],
  smollm: ["\\p{N}|\\P{N}+", GPT2],
};

export class Words {
  /**
   * @param {Uint8Array[]} pieces bytes of each token
   * @param {{special: number[], entries: number, pre: string}} facts ids that are no text, how many of the ids the
   *   tokenizer has, and how it splits text
   */
  constructor(pieces, { special, entries, pre }) {
    this.special = new Set(special);
    this.entries = entries;
    this.splits = (SPLITS[pre] ?? []).map((pattern) => new RegExp(pattern, "gu"));
    this.bytes = pieces.map((piece, id) => (this.special.has(id) || id >= entries ? "" : lettersOf(piece)));
    this.single = new Set(this.bytes.filter((letters) => letters.length === 1));
  }

  /** Tokens that may come next where `pending` has to be spelt: its beginnings, and whatever begins with it. */
  spelling(pending) {
    const fits = (letters) => letters && (pending.startsWith(letters) || letters.startsWith(pending));
    return this.bytes.flatMap((letters, id) => (fits(letters) ? [id] : []));
  }

  /** Cuts the tokens of the last piece off a prompt: the tokens that stay, the bytes to spell, how many were cut. */
  heal(text, ids) {
    const untouched = { ids, pending: "", removed: 0 };
    if (!text || !ids.length) return untouched;
    const wanted = Math.max(1, toBytes(this.lastPiece(text)).length);
    let cut = ids.length;
    let tail = "";
    const back = () => (tail = this.bytes[ids[--cut]] + tail);
    while (cut > 0 && tail.length < wanted && !this.special.has(ids[cut - 1])) back();
    // A token in front may be half of a character: the whole character has to go.
    while (cut > 0 && tail && tail[0] >= "\x80" && tail[0] < "\xc0" && !this.special.has(ids[cut - 1])) back();
    const spellable = [...tail].every((letter) => this.single.has(letter));
    if (!tail || !spellable || !toBytes(text).endsWith(tail)) return untouched;
    return { ids: ids.slice(0, cut), pending: tail, removed: ids.length - cut };
  }

  /** The last piece that the tokenizer makes of the end of a text before it looks for tokens. */
  lastPiece(text) {
    const tail = [...text].slice(-256).join("");
    const piece = this.splits.reduce((rest, split) => rest.match(split)?.at(-1) ?? "", tail);
    return this.splits.length && piece && [...piece].length < 64 ? piece : [...tail].at(-1);
  }
}

/** The text of a completion while it grows: bytes, what is left to spell, and why it ended. */
export class Growth {
  constructor(healed, { stops, most }) {
    this.pending = healed.pending;
    this.stops = stops.map(toBytes);
    this.most = most;
    this.ids = [];
    this.bytes = "";
    this.count = 0;
    this.ended = "";
  }

  /** Takes one token. */
  push(id, words) {
    if (words.special.has(id)) {
      this.ended = "end";
      return;
    }
    this.ids.push(id);
    const added = words.bytes[id];
    if (this.pending && added.length <= this.pending.length) {
      this.pending = this.pending.slice(added.length);
      return;
    }
    const searched = this.bytes.length;
    this.bytes += added.slice(this.pending.length);
    this.pending = "";
    this.count += 1;
    const found = this.stops.map((stop) => this.bytes.indexOf(stop, Math.max(0, searched - stop.length + 1)));
    const first = Math.min(...found.filter((at) => at >= 0));
    if (first < Infinity) {
      this.bytes = this.bytes.slice(0, first);
      this.ended = "block";
    } else if (this.count >= this.most) this.ended = "length";
  }

  /** The text; while it grows, without what a stop string may still take back. */
  text() {
    return toText(this.bytes.slice(0, this.settled()), { whole: this.ended === "block" || this.ended === "end" });
  }

  settled() {
    if (this.ended || !this.stops.length) return this.bytes.length;
    const longest = Math.min(this.bytes.length, Math.max(...this.stops.map((stop) => stop.length)) - 1);
    for (let size = longest; size > 0; size--) {
      if (this.stops.some((stop) => stop.startsWith(this.bytes.slice(-size)))) return this.bytes.length - size;
    }
    return this.bytes.length;
  }
}
