// The pool, live: charts of the last ten minutes, models with their workers, queue and cache, the last errors.

import { chart } from "./chart.js";
import { bar, bytes, card, errorNote, events, h, ms, number, patch, rounded, table } from "./lib.js";

// Lines show means of five seconds, to be readable; the table has each minute's worst second.
const [SECONDS, STEP] = [600, 5];
const COLOURS = { ok: "ok", ready: "ok", unavailable: "bad", gone: "bad" };

const state = (name, told = name) => h(`span.state.${COLOURS[name] ?? "warn"}`, told);

export default function pool(section) {
  const find = (name) => section.querySelector(`[data-${name}]`);
  const charts = {
    Requests: chart("Requests per second", "a second", [""], rounded),
    Texts: chart("Texts per second", "a second", [""], rounded),
    Latency: chart("Latency of good requests", "p50", ["p50", "p95", "p99"], ms, true),
  };
  find("charts").append(...Object.entries(charts).map(([name, { node }]) => card(name, node)));
  const minutes = find("minutes").parentElement;
  let [seconds, n_over, pids, stopped] = [[], 0, {}, null];

  function draw() {
    const parts = []; // begun at every fifth second, so that the past keeps its shape; the last one grows
    for (let start = SECONDS - (n_over % STEP || STEP); start >= 0; start -= STEP) {
      parts.unshift(seconds.slice(start, Math.min(start + STEP, SECONDS)));
    }
    const means = (value) => parts.map((part) => {
      const values = part.map(value).filter((each) => each != null);
      return values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : null;
    });
    charts.Requests.update([means((second) => second[0])]);
    charts.Texts.update([means((second) => second[2])]);
    charts.Latency.update([0, 1, 2].map((i) => means((second) => second[3]?.[i])));
    if (minutes.open) drawMinutes();
  }

  function drawMinutes() {
    const rows = [];
    for (let ago = 0; ago < SECONDS / 60; ago++) {
      const part = seconds.slice(SECONDS - 60 * (ago + 1), SECONDS - 60 * ago);
      const mean = (i) => rounded(part.reduce((sum, second) => sum + second[i], 0) / 60);
      const worst = (i) => ms(part.reduce((most, { 3: at }) => (at && at[i] > most ? at[i] : most), null));
      rows.push([ago ? `${ago} min ago` : "this minute", mean(0), mean(2), mean(1), worst(0), worst(1), worst(2)]);
    }
    const heads = ["when", "requests/s#", "texts/s#", "errors/s#", "p50 at most#", "p95#", "p99#"];
    find("minutes").replaceChildren(table("Each minute's mean, and its slowest second", heads, rows));
  }
  minutes.addEventListener("toggle", () => minutes.open && seconds.length && drawMinutes());

  // Say who died and who came, for those who do not look; from one event to the next.
  function tellNews(model) {
    const known = pids[model.name] ?? {};
    pids[model.name] = {};
    for (const { place, pid } of model.workers) {
      const before = known[place];
      if (before !== undefined && before !== pid) {
        const told = [before && `process ${before} is gone`, pid && `process ${pid} took its place`].filter(Boolean);
        find("news").textContent = `${new Date().toLocaleTimeString()}, worker ${place} of ${model.name}: ${told.join("; ")}.`;
      }
      pids[model.name][place] = pid;
    }
  }

  function modelCard(model) {
    const { queue } = model;
    const [some, alone] = model.n_threads;
    const facts = {
      Status: state(model.status), Format: model.format, Dimensions: model.dimensions,
      Context: `${number(model.n_ctx)} tokens`, "Computed with": model.compute,
      Threads: some === alone ? some : `${some}, alone ${alone}`, "Open requests": number(model.n_open),
      "Waiting requests": number(queue.requests), "Waiting tokens": number(queue.tokens),
      Wait: queue.seconds == null ? "–" : `${rounded(queue.seconds)} s`,
    };
    return card(model.name,
      h("dl.facts", Object.entries(facts).map(([name, value]) => h("div", h("dt", name), h("dd", value)))),
      model.trouble && h("p.note.bad", model.trouble),
      table(`Workers of ${model.name}`, ["worker", "state", "process#", "busy#", "memory#", "resident#", "restarts#"],
        model.workers.map((worker) => [
          worker.place,
          state(worker.stage, worker.stage === "ready" && worker.is_computing ? "busy" : worker.stage),
          worker.pid || "–", [`${number(100 * worker.busy)} %`, bar(worker.busy)],
          bytes(worker.memory), bytes(worker.resident), number(worker.n_restarts),
        ])),
      model.cache.length && table(`Cache of ${model.name}`, ["cache layer", "hits#", "misses#", "hit rate#", "bytes#", "trouble"],
        model.cache.map((layer) => {
          const asked = layer.n_hits + layer.n_misses;
          const rate = asked ? `${number((100 * layer.n_hits) / asked)} %` : "–";
          return [layer.name, number(layer.n_hits), number(layer.n_misses), rate, bytes(layer.n_bytes), layer.trouble || "none"];
        })));
  }

  function drawErrors(errors) {
    find("errors").replaceChildren(errors.length
      ? table("Last errors", ["time", "status#", "code", "path", "model", "request id"],
          errors.reverse().map((error) => [
            h("time", new Date(1000 * error.time).toLocaleTimeString()), error.status, error.code,
            h("code", error.path), error.model || "–", h("code", error.request_id),
          ]))
      : h("p.muted", "None."));
  }

  function onEvent(name, event) {
    if (name === "past") seconds = [...Array(SECONDS).fill([0, 0, 0, null]), ...event.seconds].slice(-SECONDS);
    else {
      seconds = [...seconds, ...event.seconds].slice(-SECONDS);
      n_over += event.seconds.length;
      draw();
      event.models.forEach(tellNews);
      patch(find("models"), h("div", { "data-models": true }, event.models.map(modelCard)));
      const sum = (field) => event.models.reduce((total, model) => total + model[field], 0);
      const n = event.models.length;
      find("summary").textContent =
        `${sum("n_ready")} of ${sum("n_workers")} workers ready, ${n} ${n > 1 ? "models" : "model"}`;
    }
    if (event.errors) drawErrors(event.errors);
  }

  function onState(error) {
    find("trouble").replaceChildren(...(error ? [errorNote(error)] : []));
    if (error) find("summary").textContent = "Not connected";
  }

  return {
    show() {
      stopped = new AbortController();
      events("admin/events", stopped.signal, onEvent, onState);
    },
    hide: () => stopped?.abort(),
  };
}
