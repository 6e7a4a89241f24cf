// What `embellama bench` found on this machine: speed as bars, and what a format costs in likeness.

import { api, bar, card, errorNote, h, ms, number, table } from "./lib.js";

function draw({ measured_at, report }) {
  const good = report.rows.filter((row) => !row.failed);
  const speeds = (measured) => {
    const fastest = Math.max(...measured.map((each) => each.texts_per_s));
    return ({ texts_per_s: speed }) => [`${number(speed)} texts/s`, bar(speed / fastest)];
  };
  const [ofFormat, ofSetting] = [speeds(good), speeds(report.settings)];
  const loss = (row) => 1 - row.worst_cosine;
  const share = (value) => Math.log10(Math.max(value, 1e-7)) / 7 + 1; // float32 knows no less than 1e-7
  const rows = report.rows.map((row) => row.failed
    ? [row.name, "–", `failed: ${row.failed}`, ...Array(4).fill("–")]
    : [row.name, `${number(row.n_bytes / 1e6, 1)} MB`, ofFormat(row), ms(row.p50_ms),
       [loss(row) < 1e-7 ? "none" : loss(row).toExponential(1), bar(share(loss(row)))], number(row.max_batch_tokens),
       row.compute]);
  return [
    h("p.note", report.advice),
    card("Formats",
      table("Formats", ["format", "size#", "speed", "one text alone#", "loss", "batch tokens#", "computed with"], rows),
      h("p.muted", `Loss: 1 − worst cosine to ${report.reference}, over ${report.n_texts} texts; its bar is logarithmic.`)),
    card("Settings of the best",
      table("Settings", ["workers#", "threads#", "speed", "one text alone#"],
        report.settings.map((each) => [number(each.num_workers), each.n_threads ? number(each.n_threads) : "auto",
          ofSetting(each), ms(each.p50_ms)]))),
    h("p.muted", `${report.cpu}, ${report.n_cores} cores, measured ${new Date(measured_at).toLocaleString()}.`),
  ];
}

export default function bench(section) {
  const content = section.querySelector("[data-content]");
  return {
    async show() {
      try {
        const { bench: last } = await (await api("admin/bench")).json();
        content.replaceChildren(...(last ? draw(last) : [h("div.card",
          h("p", "It was not run here yet. It says which format of a model, and which settings, are fastest:"),
          h("pre", "embellama bench models/minilm.gguf"))]));
      } catch (error) {
        content.replaceChildren(errorNote(error));
      }
    },
  };
}
