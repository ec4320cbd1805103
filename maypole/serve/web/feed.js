// What a session's event stream tells, put together: the snapshot, then what changed. A new connection begins anew.

import { events, Gone, Refused } from "./server.js";

const SELDOM = 30;

/** Nodes (calls) and edges (variables) by id, in the order in which they came. */
export class Picture {
  constructor() {
    Object.assign(this, { seq: -1, nodes: new Map(), edges: new Map(), totals: null, closed: false });
  }

  apply(event) {
    if (event.type === "closed") {
      this.closed = true;
      return;
    }
    if (event.type === "snapshot") {
      this.nodes.clear();
      this.edges.clear();
    } else if (event.seq <= this.seq) return; // known already
    this.seq = event.seq;
    for (const node of event.nodes) this.nodes.set(node.id, node);
    for (const edge of event.edges) this.edges.set(edge.id, edge);
    this.totals = event.totals;
  }

  get over() {
    const nodes = [...this.nodes.values()];
    return this.closed || (nodes.length > 0 && nodes.every((node) => node.state === "done" || node.state === "failed"));
  }
}

/** Call `changed(picture)` whenever there is news, until the session ends; `lost(seconds)` while nobody answers. */
export async function watch(path, headers, signal, changed, lost) {
  const picture = new Picture();
  let wait = 1;
  while (!picture.closed) {
    try {
      for await (const data of events(path, { headers, signal })) {
        wait = 1;
        picture.apply(JSON.parse(data));
        changed(picture);
      }
    } catch (error) {
      if (!(error instanceof Gone) && !(error instanceof Refused && error.status === 503)) throw error;
    }
    if (picture.closed) return;
    lost(wait);
    await pause(wait, signal);
    wait = Math.min(wait * 2, SELDOM);
  }
}

function pause(seconds, signal) {
  return new Promise((done, stopped) => {
    const timer = setTimeout(done, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), stopped(signal.reason)), { once: true });
  });
}
