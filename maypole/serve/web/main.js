// The page: its views, the key it may need, and how the server is.

import { Chat } from "./chat.js";
import { button, byId, fill, visible } from "./dom.js";
import { Health } from "./health.js";
import { Program } from "./program.js";
import * as rows from "./rows.js";
import { json, onKeyNeeded, Refused } from "./server.js";
import * as settings from "./settings.js";
import { load, save } from "./store.js";

const STATES = { ready: "● ready", draining: "◐ shutting down", unwell: "✗ unwell", gone: "✗ not answering" };
const VIEWS = ["chat", "program"];
const KEEP = 500; // ms until what changed is kept
const AGAIN = 30_000; // ms until one asks again what is served

const kept = load();
settings.restore(kept.settings);
rows.begin(kept.rows, changed);
settings.onChange(changed);
const chat = new Chat(kept, changed);
const program = new Program();

let keeping = null;

function changed() {
  keeping ??= setTimeout(keep, KEEP);
}

function keep() {
  clearTimeout(keeping);
  keeping = null;
  byId("long").hidden = save({ ...chat.state, settings: settings.kept(), rows: rows.rows });
}

addEventListener("pagehide", keep);

function view() {
  const name = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : VIEWS[0];
  for (const other of VIEWS) byId(other).hidden = other !== name || byId("skeleton") !== null;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name === "chat" ? "Chat" : "Program"} · maypole`;
}

addEventListener("hashchange", view);

let served = ""; // names and template as last heard of
let trouble = ""; // why they could not be had
let asked = 0;

/** Find out what is served. */
async function models() {
  asked = performance.now();
  try {
    const [{ data }, { chat_template: template }] = await Promise.all([json("v1/models"), json("tokenizer_info")]);
    trouble = "";
    const names = data.map((model) => model.id);
    const now = JSON.stringify([names, Boolean(template)]);
    if (now === served) return;
    served = now;
    byId("base").textContent = visible(names[0]);
    chat.serve(names, template ? null : "This model has no chat template, so it completes texts.");
    program.serve(names);
    byId("skeleton")?.remove();
    view();
  } catch (error) {
    if (error instanceof Refused) trouble = error.message;
  }
}

function banner(text, ...more) {
  if (byId("banner").dataset.text === text) return;
  byId("banner").dataset.text = text;
  byId("banner").hidden = text === "";
  fill(byId("banner"), text, ...more);
}

async function shown({ state, detail, retry, tokens, kv }) {
  byId("state").dataset.state = state;
  byId("state").textContent = STATES[state];
  byId("rate").textContent = tokens == null ? "" : `${Math.round(tokens)} tok/s`;
  byId("kv").textContent = kv == null ? "" : `KV ${Math.round(kv * 100)} %`;
  const choosing = document.activeElement?.tagName === "SELECT";
  if (state !== "gone" && !trouble && !choosing && (!served || performance.now() - asked > AGAIN)) await models();
  if (state === "draining") program.leave();
  const again = button("Try again", () => models().then(() => health.now()));
  if (trouble) banner(`The server refuses: ${visible(trouble)}`, " ", again);
  else if (state === "ready") banner("");
  else if (state === "draining") banner("The server is shutting down: what is under way ends, nothing new is begun.");
  else if (state === "unwell") banner(`The server is not well: ${visible(detail)}`);
  else banner(`The server does not answer. Asking again every ${retry} s.`);
}

onKeyNeeded((wrong) => {
  const dialog = byId("key");
  byId("key-wrong").hidden = !wrong;
  byId("key-input").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    let found = null;
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = byId("key-input").value.trim();
      byId("key-wrong").hidden = /^[\x21-\x7e]+$/.test(key);
      if (!byId("key-wrong").hidden) return;
      found = key;
      dialog.close();
    };
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(found);
  });
});

byId("request-close").addEventListener("click", () => byId("request").close());
view();
const health = new Health(shown);
health.now();
