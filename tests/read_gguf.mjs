// Reads a GGUF file with llama.cpp: token ids of a text, and greedy tokens after given ids. Prints one JSON object.
import { readFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";

const [modelPath, requestPath] = process.argv.slice(2);
const { text, ids, count } = JSON.parse(readFileSync(requestPath, "utf-8"));
const llama = await getLlama({ gpu: false, build: "never" });
const model = await llama.loadModel({ modelPath });
const tokens = model.tokenize(text).map(Number);
const context = await model.createContext({ contextSize: 256 });
const greedy = [];
if (count) for await (const token of context.getSequence().evaluate(ids, { temperature: 0 })) {
  greedy.push(Number(token));
  if (greedy.length >= count) break;
}
console.log(JSON.stringify({ tokens, greedy }));
process.exit(0);
