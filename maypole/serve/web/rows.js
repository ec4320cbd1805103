// Rows that a reader collects: which answer was better, and conversations worth keeping, as files that training reads.

import { byId, download, quoted } from "./dom.js";

const FILES = { pairs: "preferences.jsonl", chats: "conversations.jsonl" };

/** Preference rows by the turn they came from (null: both were as good), and conversations by the turn and side. */
export const rows = { pairs: {}, chats: {} };

/** `changed` is called when rows are forgotten. */
export function begin(kept, changed) {
  Object.assign(rows, kept);
  for (const kind of Object.keys(FILES)) {
    byId(`download-${kind}`).addEventListener("click", () => download(FILES[kind], lines(kind)));
  }
  byId("forget").addEventListener("click", () => {
    Object.assign(rows, { pairs: {}, chats: {} });
    changed();
    show();
  });
  show();
}

export function show() {
  const votes = Object.values(rows.pairs);
  const pairs = votes.filter((row) => row !== null).length;
  const chats = Object.keys(rows.chats).length;
  byId("collected").hidden = votes.length + chats === 0;
  const counts = [count(pairs, "preference"), `${votes.length - pairs} as good`, count(chats, "conversation")];
  byId("count").textContent = `Collected: ${counts.join(", ")}`;
  byId("download-pairs").disabled = pairs === 0;
  byId("download-chats").disabled = chats === 0;
}

const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

const lines = (kind) =>
  Object.values(rows[kind])
    .filter((row) => row !== null)
    .map((row) => `${quoted(row)}\n`)
    .join("");

/** The conversation that ends with an answer. */
export function conversation({ body, text }) {
  return { messages: [...body.messages, { role: "assistant", content: text }] };
}

/**
 * The row that says that the record `better` was the better answer; null where both were not asked the same.
 *
 * What both conversations begin with is the prompt, so a row stays true where they went apart earlier.
 */
export function pair(better, worse) {
  const models = { chosen_model: better.model, rejected_model: worse.model };
  if (better.body.prompt !== undefined) {
    const same = better.body.prompt === worse.body.prompt;
    return same ? { prompt: better.body.prompt, chosen: better.text, rejected: worse.text, ...models } : null;
  }
  const [chosen, rejected] = [better, worse].map((record) => conversation(record).messages);
  let same = 0;
  while (same < chosen.length && quoted(chosen[same]) === quoted(rejected[same] ?? null)) same += 1;
  if (chosen[same - 1]?.role !== "user") return null;
  return { prompt: chosen.slice(0, same), chosen: chosen.slice(same), rejected: rejected.slice(same), ...models };
}
