// The picture of a program: boxes for calls, lines for variables. For eyes only; the table says the same to everybody.

import { el, visible } from "./dom.js";
import { Layout } from "./layout.js";

const BOX = { width: 184, height: 96 };
const GAP = { x: 96, y: 16 };
const SVG = "http://www.w3.org/2000/svg";

const STATES = ["done", "failed", "running", "queued", "waiting"];

export const LOOKS = { waiting: "○", queued: "○", running: "◐", done: "✓", failed: "✗" };
export const number = (n) => n.toLocaleString("en-US");

export class Graph {
  constructor(root) {
    this.layout = new Layout();
    this.shown = new Map();
    this.lines = document.createElementNS(SVG, "svg");
    this.stage = el("div", { class: "stage" }, this.lines);
    root.replaceChildren(this.stage);
  }

  draw(picture) {
    const { boxes, keys } = this.layout.place([...picture.nodes.values()], picture.edges.values());
    for (const [key, shown] of this.shown) {
      if (boxes.some((box) => box.key === key)) continue;
      shown.remove();
      this.shown.delete(key);
    }
    for (const box of boxes) this.box(box);
    this.join(boxes, picture.edges.values(), keys);
    const most = (name) => Math.max(0, ...boxes.map((box) => box[name])) + 1;
    const [width, height] = [most("column") * (BOX.width + GAP.x) - GAP.x, most("row") * (BOX.height + GAP.y) - GAP.y];
    Object.assign(this.stage.style, { width: `${width}px`, height: `${height}px` });
    this.lines.setAttribute("viewBox", `0 0 ${width} ${height}`);
    for (const [name, value] of Object.entries({ width, height })) this.lines.setAttribute(name, value);
  }

  box(box) {
    let shown = this.shown.get(box.key);
    if (!shown) {
      shown = el("div", { class: "box" });
      this.shown.set(box.key, shown);
      this.stage.append(shown);
      Object.assign(shown.style, { left: `${left(box)}px`, top: `${top(box)}px` });
    }
    const content = box.nodes.length > 1 ? folded(box.nodes) : single(box.nodes[0]);
    shown.dataset.state = content.state;
    shown.dataset.name = box.nodes[0].function;
    const said = JSON.stringify(content.lines) + content.title + content.count;
    if (shown.dataset.said === said) return;
    shown.dataset.said = said;
    const line = (text) => el("span", { class: "line", title: text }, text);
    const title = el("b", {}, el("span", { title: content.title }, content.title), content.count);
    shown.replaceChildren(title, ...content.lines.map(line), ...content.bars);
  }

  join(boxes, edges, keys) {
    const at = new Map(boxes.map((box) => [box.key, box]));
    const joined = new Map(); // box -> box it leads to -> variables
    for (const edge of edges) {
      if (!keys.has(edge.from) || edge.to.length === 0) continue;
      const from = at.get(keys.get(edge.from));
      if (!joined.has(from)) joined.set(from, new Map());
      for (const to of new Set(edge.to.map((id) => at.get(keys.get(id))))) {
        joined.get(from).set(to, [...(joined.get(from).get(to) ?? []), edge]);
      }
    }
    this.lines.replaceChildren();
    for (const [from, ends] of joined) {
      const [x, y] = [left(from) + BOX.width, top(from) + BOX.height / 2];
      for (const [to, together] of ends) {
        const [u, v] = [left(to), top(to) + BOX.height / 2];
        const middle = u - GAP.x / 2;
        const set = together.every((edge) => edge.set) ? "done" : "waiting";
        const state = together.some((edge) => edge.error) ? "failed" : set;
        const d = `M${x} ${y}H${middle - GAP.x / 2}C${middle} ${y} ${middle} ${v} ${u} ${v}`;
        this.lines.append(svg("path", { d, "data-state": state }));
      }
      const rising = [...ends.keys()].every((to) => to.row < from.row);
      const label = svg("text", { x: x + 6, y: rising ? y + 16 : y - 6 });
      label.textContent = names([...new Set([...ends.values()].flat())]);
      this.lines.append(label);
    }
  }
}

const left = (box) => box.column * (BOX.width + GAP.x);
const top = (box) => box.row * (BOX.height + GAP.y);

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function names(edges) {
  const [first, last] = [edges[0].name, edges.at(-1).name].map(visible);
  const most = edges.length === 1 ? 12 : 5;
  const short = (text) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  return edges.length === 1 ? short(first) : `${short(first)}..${short(last)}`;
}

/** What a call is at, in words. */
export function stateOf(node) {
  const { state, error, waits_for: names } = node;
  if (names.length) return `waits for ${names.slice(0, 3).join(", ")}${names.length > 3 ? " …" : ""}`;
  return error ? `failed: ${error}` : state;
}

export function reusedOf({ prompt, reused }) {
  return prompt ? `reused ${number(reused)} of ${number(prompt)}` : "";
}

/** How many of `nodes` are in what state, in words. */
export function countsOf(nodes) {
  const counts = STATES.map((state) => [nodes.filter((node) => node.state === state).length, state]);
  return counts.filter(([count]) => count).map((pair) => pair.join(" ")).join(", ");
}

function single(node) {
  const said = node.tokens.said ? `${number(node.tokens.said)} out` : "";
  const facts = [node.objective, said].filter(Boolean).join(" · ");
  const lines = [stateOf(node), facts];
  const bars = [];
  if (node.tokens.prompt) {
    lines.push(reusedOf(node.tokens));
    const part = el("i");
    part.style.width = `${(100 * node.tokens.reused) / node.tokens.prompt}%`;
    bars.push(el("div", { class: "share" }, part));
  }
  return { state: node.state, title: `${LOOKS[node.state]} ${node.function || "call"}`, count: "", lines, bars };
}

function folded(nodes) {
  const foremost = ["running", "failed", "queued", "waiting", "done"];
  const state = foremost.find((one) => nodes.some((node) => node.state === one));
  const sum = (name) => nodes.reduce((all, node) => all + node.tokens[name], 0);
  const reused = reusedOf({ prompt: sum("prompt"), reused: sum("reused") });
  const title = nodes[0].function || "call";
  return { state, title, count: ` ×${nodes.length}`, lines: [countsOf(nodes), reused].filter(Boolean), bars: [] };
}
