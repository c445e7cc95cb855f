/* Runs the network with ONNX Runtime in a thread of its own. Messages: load, run, restart. */
let ort, session, facts, states;

async function fetched(base, { url, integrity }) {
  const answer = await fetch(new URL(url, base), { integrity, cache: "no-cache" }).catch(() => ({ ok: false, status: "no connection, or a changed file" }));
  if (!answer.ok) throw new Error(`${url} cannot be loaded (${answer.status}); export the page again`);
  return new Uint8Array(await answer.arrayBuffer());
}

const arrays = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, bool: Uint8Array };

const handlers = {
  async load({ base, card }) {
    facts = card;
    const [code, binary, network] = await Promise.all([facts.runtime.module, facts.runtime.wasm, facts.network].map((file) => fetched(base, file)));
    ort = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    ort.env.wasm.wasmBinary = binary;
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"], logSeverityLevel: 3 });
    handlers.restart();
    return { threads: ort.env.wasm.numThreads };
  },
  restart() {
    states = Object.fromEntries((facts.stream ? facts.stream.states : []).map(({ name, shape, dtype, initial }) => {
      const sizes = shape.map((size) => size === "batch" ? 1 : size), values = new arrays[dtype](sizes.reduce((a, b) => a * b, 1));
      return [name, new ort.Tensor(dtype, values.fill(dtype === "int64" ? BigInt(initial) : Number(initial)), sizes)];
    }));
  },
  async run({ clip, shape }) {
    const begin = performance.now();
    const found = await session.run({ [facts.input]: new ort.Tensor("uint8", clip, shape), ...states });
    for (const name of Object.keys(states)) states[name] = found[`next_${name}`];
    return { logits: Array.from(found.logits.data), ms: performance.now() - begin };
  },
};

onmessage = async ({ data }) => {
  try {
    postMessage({ id: data.id, ...await handlers[data.kind](data) });
  } catch (error) {
    postMessage({ id: data.id, error: String(error.message || error) });
  }
};
