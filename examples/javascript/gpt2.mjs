// GPT-2 in JavaScript, and the glue by which gpt-verify asks it over HTTP.
//
//   node gpt2.mjs DIRECTORY 8123 &
//   gpt-verify run --port http://127.0.0.1:8123/
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

// ---- the weights: config.json and model.safetensors, as the Hugging Face hub serves them ----

function load(directory) {
  const config = JSON.parse(readFileSync(`${directory}/config.json`));
  const file = readFileSync(`${directory}/model.safetensors`);
  const length = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, 8 + length));
  const tensor = (name) => {
    const [start, end] = header[`transformer.${name}`].data_offsets;
    return new Float32Array(file.buffer.slice(file.byteOffset + 8 + length + start, file.byteOffset + 8 + length + end));
  };
  const pair = (name) => ({ w: tensor(`${name}.weight`), b: tensor(`${name}.bias`) });
  const blocks = Array.from({ length: config.n_layer }, (_, i) => ({
    ln_1: pair(`h.${i}.ln_1`), c_attn: pair(`h.${i}.attn.c_attn`), proj: pair(`h.${i}.attn.c_proj`),
    ln_2: pair(`h.${i}.ln_2`), fc: pair(`h.${i}.mlp.c_fc`), out: pair(`h.${i}.mlp.c_proj`),
  }));
  return { config, blocks, wte: tensor("wte.weight"), wpe: tensor("wpe.weight"), ln_f: pair("ln_f") };
}

// ---- the model, in double precision: one position after another, with a cache ----

const sum = (values) => values.reduce((a, b) => a + b, 0);
const add = (a, b) => a.map((value, i) => value + b[i]);
const gelu = (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

function layerNorm(x, { w, b }) {
  const mean = sum(x) / x.length;
  const variance = sum(x.map((value) => (value - mean) ** 2)) / x.length;
  return x.map((value, i) => ((value - mean) / Math.sqrt(variance + 1e-5)) * w[i] + b[i]);
}

function linear(x, { w, b }) {
  const y = Float64Array.from(b);
  for (let i = 0; i < x.length; i++) for (let j = 0; j < y.length; j++) y[j] += x[i] * w[i * y.length + j];
  return y;
}

function attend(qkv, cache, heads) {
  const size = qkv.length / 3 / heads;
  cache.push(qkv);
  const mixed = new Float64Array(qkv.length / 3);
  for (let at = 0; at < mixed.length; at += size) {
    const part = (row, which) => row.subarray(which * mixed.length + at, which * mixed.length + at + size);
    const q = part(qkv, 0);
    const scores = cache.map((row) => sum(part(row, 1).map((k, i) => k * q[i])) / Math.sqrt(size));
    const largest = Math.max(...scores);
    const weights = scores.map((score) => Math.exp(score - largest));
    const total = sum(weights);
    cache.forEach((row, s) => part(row, 2).forEach((v, i) => (mixed[at + i] += (weights[s] / total) * v)));
  }
  return mixed;
}

function logits(model, tokens) {
  const { wte, wpe, blocks, ln_f, config: { n_embd: D, n_head, n_positions, vocab_size: V } } = model;
  if (tokens.length > n_positions) throw new RangeError(`${tokens.length} tokens, ${n_positions} at most`);
  const caches = blocks.map(() => []);
  return tokens.map((token, t) => {
    let x = Float64Array.from({ length: D }, (_, d) => wte[token * D + d] + wpe[t * D + d]);
    blocks.forEach((block, i) => {
      x = add(x, linear(attend(linear(layerNorm(x, block.ln_1), block.c_attn), caches[i], n_head), block.proj));
      x = add(x, linear(linear(layerNorm(x, block.ln_2), block.fc).map(gelu), block.out));
    });
    x = layerNorm(x, ln_f);
    return Array.from({ length: V }, (_, v) => {
      let y = 0;
      for (let d = 0; d < D; d++) y += x[d] * wte[v * D + d];
      return y;
    });
  });
}

// ---- the glue: {"tokens": [[1, 2], [3, 4]]} is posted, {"logits": [[[…], …], …]} is the answer ----

const [directory, port] = process.argv.slice(2);
const model = load(directory);
const server = createServer((request, response) => {
  let body = "";
  request.on("data", (chunk) => (body += chunk));
  request.on("end", () => {
    try {
      const { tokens } = JSON.parse(body);
      response.end(JSON.stringify({ logits: tokens.map((row) => logits(model, row)) }));
    } catch (error) {
      response.writeHead(422).end(error.message);
    }
  });
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
