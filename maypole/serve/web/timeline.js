// The facts of a program as a table, a row a call, with what each spent its time on beside one common axis.

import { el, fill } from "./dom.js";
import { LOOKS, number, reusedOf, stateOf } from "./graph.js";

const PARTS = [
  ["waited", "submitted", "ready"],
  ["queued", "ready", "placed"],
  ["prefill", "placed", "first_token"],
  ["decode", "first_token", "ended"],
];

const CLASSES = ["makes", "at", "for", "n", "n out"];

export const LEGEND = PARTS.map(([name]) => name);

export class Timeline {
  constructor(body, axis) {
    Object.assign(this, { body, axis, rows: new Map() });
    body.replaceChildren();
  }

  draw(picture) {
    const nodes = [...picture.nodes.values()];
    const known = nodes.flatMap((node) => Object.values(node.seconds).filter((at) => at !== null));
    const begin = Math.min(...known);
    const whole = Math.max(...known) - begin || 1;
    this.axis.textContent = `seconds, 0 to ${whole.toFixed(whole < 10 ? 2 : 1)}`;
    for (const node of nodes) {
      let row = this.rows.get(node.id);
      if (!row) {
        row = el("tr");
        this.rows.set(node.id, row);
        this.body.append(row);
      }
      const parts = partsOf(node, begin + whole);
      const said = JSON.stringify([node, begin, whole]);
      if (row.dataset.said === said) continue;
      row.dataset.said = said;
      row.dataset.state = node.state;
      const output = picture.edges.get(node.output)?.name ?? "";
      const state = `${LOOKS[node.state]} ${stateOf(node)}`;
      const out = node.tokens.said ? number(node.tokens.said) : "";
      const cells = [output, state, node.objective, reusedOf(node.tokens), out];
      fill(
        row,
        el("th", { scope: "row" }, node.function || "call"),
        cells.map((text, at) => el("td", { class: CLASSES[at] }, text)),
        el("td", { class: "time" }, bar(parts, begin, whole), el("span", { class: "unseen" }, inWords(parts))),
      );
    }
    for (const [id, row] of this.rows) {
      if (picture.nodes.has(id)) continue;
      row.remove();
      this.rows.delete(id);
    }
  }
}

/** [name, from, to] of everything that has begun; what has not ended lasts until `now`. */
function partsOf(node, now) {
  const over = node.seconds.ended ?? now;
  const parts = PARTS.map(([name, from, to]) => [name, node.seconds[from], node.seconds[to] ?? over]);
  return parts.filter(([, from]) => from !== null);
}

const inWords = (parts) => parts.map(([name, from, to]) => `${name} ${(to - from).toFixed(2)} s`).join(", ");

function bar(parts, begin, whole) {
  const made = el("div", { class: "spent", "aria-hidden": "true" });
  for (const [name, from, to] of parts) {
    const part = el("i", { class: name, title: `${name} ${(to - from).toFixed(2)} s` });
    part.style.left = `${(100 * (from - begin)) / whole}%`;
    part.style.width = `${(100 * (to - from)) / whole}%`;
    made.append(part);
  }
  return made;
}
