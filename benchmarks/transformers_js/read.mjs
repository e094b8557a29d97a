// Continues prompts with an exported folder by transformers.js's ordinary pipeline: the same code in Node and in a page.
import { env, pipeline, TextStreamer } from "@huggingface/transformers";

/**
 * @param {{root: string, name: string, dtype: string, device: string, prompts: string[], count: number, wasm?: string,
 *   session?: object}} asked `name` is a folder in `root`, `wasm` where a page finds ONNX Runtime's program, `session`
 *   what the pipeline hands on to ONNX Runtime
 * @returns milliseconds until the pipeline was there, and for each prompt its ids, those that came, the text, and the
 *   milliseconds until the first token and from there to the last
 */
export async function complete({ root, name, dtype, device, prompts, count, wasm, session }) {
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = root;
  env.useBrowserCache = false;
  if (wasm) {
    env.backends.onnx.wasm.wasmPaths = wasm;
    env.backends.onnx.wasm.numThreads = 1;
  }
  const generator = await pipeline("text-generation", name, { dtype, device, session_options: session ?? {} });
  const ready = performance.now();
  const found = [];
  for (const prompt of prompts) {
    const ids = [];
    const times = [];
    const streamer = new TextStreamer(generator.tokenizer, {
      skip_prompt: true,
      callback_function: () => {},
      token_callback_function: (some) => {
        ids.push(...some.map(Number));
        times.push(performance.now());
      },
    });
    const begun = performance.now();
    const [{ generated_text: text }] = await generator(prompt, { max_new_tokens: count, do_sample: false, streamer });
    const given = Array.from(generator.tokenizer.encode(prompt), Number);
    found.push({ given, ids, text, first: times[0] - begun, since: times.at(-1) - times[0] });
  }
  return { ready, found };
}
