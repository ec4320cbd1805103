// Where the calls of a program stand. What can start together stands together, and what stands somewhere stays there.

const ALIKE = 12; // calls of one function in one column that are shown one by one

export class Layout {
  constructor() {
    this.places = new Map(); // key of a box -> {column, row}
  }

  /**
   * The boxes of `nodes` joined by `edges`: {key, column, row, nodes}, several nodes where over 12 are alike.
   *
   * The column is a node's longest way from a source, the row the free one nearest to the mean of its producers'.
   */
  place(nodes, edges) {
    const boxes = new Map();
    const keys = keysOf(nodes);
    for (const node of nodes) {
      const key = keys.get(node.id);
      if (!boxes.has(key)) boxes.set(key, { key, column: node.column, nodes: [] });
      boxes.get(key).nodes.push(node);
    }
    for (const key of this.places.keys()) if (!boxes.has(key)) this.fold(key, nodes, keys);
    const producers = producersOf(edges, keys);
    for (const box of [...boxes.values()].sort((a, b) => a.column - b.column)) {
      const { key, column } = box;
      if (!this.places.has(key)) this.places.set(key, { column, row: this.free(column, producers.get(key)) });
      box.row = this.places.get(key).row;
    }
    return { boxes: [...boxes.values()], keys };
  }

  /** `key` is shown no more: the box that its node went into stands where the first of them stood. */
  fold(key, nodes, keys) {
    const place = this.places.get(key);
    this.places.delete(key);
    const into = nodes.some((node) => node.id === key) ? keys.get(key) : null;
    if (into !== null && !this.places.has(into)) this.places.set(into, place);
  }

  /** The free row of `column` nearest to the mean of the producers' rows, the first one for those without. */
  free(column, producers = new Set()) {
    const there = [...this.places.values()].filter((place) => place.column === column);
    const taken = new Set(there.map((place) => place.row));
    const theirs = [...producers].map((key) => this.places.get(key).row);
    const wanted = theirs.reduce((a, b) => a + b, 0) / Math.max(1, theirs.length);
    // Among so many rows one is free, on the nearer side of the taken ones.
    const rows = Array.from({ length: taken.size + Math.ceil(wanted) + 1 }, (_, row) => row);
    const nearer = (best, row) => (Math.abs(row - wanted) < Math.abs(best - wanted) ? row : best);
    return rows.filter((row) => !taken.has(row)).reduce(nearer);
  }
}

/** Node id -> key of its box. */
function keysOf(nodes) {
  const kind = (node) => `${node.column} ${node.function}`;
  const alike = Map.groupBy(nodes, kind);
  return new Map(nodes.map((node) => [node.id, alike.get(kind(node)).length > ALIKE ? `fold ${kind(node)}` : node.id]));
}

/** Key of a box -> keys of those that produce what it needs. */
function producersOf(edges, keys) {
  const found = new Map();
  for (const edge of edges) {
    if (!keys.has(edge.from)) continue;
    for (const to of edge.to.map((id) => keys.get(id))) {
      if (!found.has(to)) found.set(to, new Set());
      found.get(to).add(keys.get(edge.from));
    }
  }
  return found;
}
