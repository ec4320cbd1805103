// The conversation: one message, one or two answers side by side, and which of them was better.

import { Answer } from "./answer.js";
import { announce, button, byId, el, fill } from "./dom.js";
import { show as showRequest } from "./request.js";
import { conversation, pair, rows, show as showRows } from "./rows.js";
import * as settings from "./settings.js";

const SIDES = ["A", "B"];
const NEAR = 40;
const VOTES = { A: "A better", same: "same", B: "B better" };

export class Chat {
  /** `kept` is what `state` gave before a reload; `changed` is called when that is no longer true. */
  constructor(kept, changed) {
    this.models = [];
    this.changed = changed;
    this.columns = kept.columns ?? [null];
    this.hidden = kept.hidden ?? false;
    this.turns = [];
    this.log = byId("log");
    byId("blind").checked = kept.blind ?? false;
    byId("message").value = kept.draft ?? "";
    for (const turn of kept.turns ?? []) {
      turn.records.forEach((record, side) => {
        record.body.messages?.push(...this.said(record.system, side, turn.prompt));
        if (record.state !== "done") Object.assign(record, { state: "failed", error: record.error || "a reload" });
      });
      this.add(turn);
    }
    byId("column").addEventListener("click", () => this.setColumns(this.columns.length === 1 ? 2 : 1));
    byId("blind").addEventListener("change", () => this.setBlind());
    byId("new").addEventListener("click", () => this.begin());
    byId("message").addEventListener("input", changed);
    byId("message").addEventListener("keydown", (event) => {
      // 229: the key belongs to whoever composes a character.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      if (!this.busy) this.send();
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.busy) this.stop();
      else this.send();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    byId("jump").addEventListener("click", () => this.jump());
    this.log.addEventListener("scroll", () => this.atEnd && (byId("jump").hidden = true));
    this.jump();
  }

  get state() {
    const { columns, hidden } = this;
    // What was said before a turn stands in the turns before it.
    const short = ({ record }) => ({ ...record, body: { ...record.body, messages: record.body.messages && [] } });
    const plain = ({ id, prompt, answers, vote }) => ({ id, prompt, records: answers.map(short), vote });
    const turns = this.turns.map(plain);
    return { columns, hidden, blind: byId("blind").checked, draft: byId("message").value, turns };
  }

  /** `models` are served, the base first; `why` says why texts are completed instead of answered, or is null. */
  serve(models, why) {
    this.models = models;
    this.complete = why !== null;
    this.columns = this.columns.map((model, at) => (models.includes(model) ? model : models[at] ?? models[0]));
    byId("system-label").hidden = this.complete;
    byId("message-label").textContent = byId("message").placeholder = this.complete ? "Text to go on from" : "Message";
    const hints = why === null ? [] : [why];
    if (models.length === 1) hints.push("No adapters are served: --adapters FOLDER makes them columns to compare.");
    fill(byId("hint"), hints.join(" "));
    byId("hint").hidden = hints.length === 0;
    this.show();
  }

  get busy() {
    return this.turns.some((turn) => turn.answers.some((answer) => !answer.over));
  }

  get atEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR;
  }

  /** Change what is shown; who reads the end goes on reading the end, who reads something else is left there. */
  follow(change) {
    const follow = this.atEnd;
    change();
    if (follow) this.log.scrollTop = this.log.scrollHeight;
    else byId("jump").hidden = this.atEnd;
  }

  jump() {
    this.log.scrollTop = this.log.scrollHeight;
    byId("jump").hidden = true;
  }

  setColumns(count) {
    this.columns.length = Math.min(this.columns.length, count);
    if (count === 1) this.hidden = false;
    const other = this.models.find((model) => !this.columns.includes(model)) ?? this.models[0];
    if (count > this.columns.length) this.columns.push(other);
    this.hide();
    this.show();
    this.changed();
  }

  setBlind() {
    this.hide();
    this.show();
    this.changed();
    if (this.turns.length) announce("blind takes effect with a new chat");
  }

  /** Where nothing was said yet: names are hidden, and which is which is drawn, if the reader wants that. */
  hide() {
    if (this.turns.length) return;
    this.hidden = byId("blind").checked && this.columns.length === 2;
    if (this.hidden && Math.random() < 0.5) this.columns.reverse();
  }

  begin() {
    this.stop();
    this.turns = [];
    this.hide();
    this.show();
    this.changed();
    byId("message").focus();
  }

  show() {
    const selects = this.columns.map((column, at) => {
      const label = el("label", { class: "side" }, el("b", {}, SIDES[at]), " ");
      if (this.hidden) return el("p", { class: "side" }, el("b", {}, SIDES[at]), " hidden until you vote");
      const onchange = (event) => {
        this.columns[at] = this.models[event.target.selectedIndex];
        this.changed();
      };
      const options = this.models.map((model) => el("option", { selected: model === column }, model));
      label.append(el("select", { onchange, "aria-label": `Model ${SIDES[at]}` }, options));
      return label;
    });
    fill(byId("sides"), selects);
    byId("column").textContent = this.columns.length === 1 ? "+ column" : "− column";
    byId("blind-label").hidden = this.columns.length === 1;
    byId("send").textContent = this.busy ? "Stop" : "Send";
    for (const turn of this.turns) for (const answer of turn.answers) answer.reveal(!this.hidden);
    if (this.turns.length === 0) this.log.replaceChildren(this.welcome());
  }

  welcome() {
    const what = this.complete ? "Write the beginning of a text." : "Write a message.";
    const both = " Both columns get it; then say which answer is better, and it becomes a row to train on.";
    const keys = el("p", { class: "note" }, "Enter sends, Shift+Enter breaks the line, Esc stops.");
    return el("div", { class: "empty" }, el("p", {}, what, this.columns.length === 2 ? both : null), keys);
  }

  /** Show a turn, {id, prompt, records, vote}. */
  add({ id, prompt, records, vote = null }) {
    const [place, votes] = ["answers", "vote"].map((name) => el("div", { class: name }));
    const turn = { id, prompt, vote, answers: [], place, votes };
    const said = el("div", { class: "prompt" }, el("b", {}, "You"), el("p", {}, prompt));
    const label = `Turn ${this.turns.length + 1}`;
    turn.root = el("section", { class: "turn", "aria-label": label }, said, place, votes);
    if (this.turns.length === 0) this.log.replaceChildren();
    this.turns.push(turn);
    records.forEach((record, side) => this.put(turn, side, record));
    this.follow(() => this.log.append(turn.root));
    this.ask(turn);
    return turn;
  }

  put(turn, side, record) {
    const answer = new Answer(record, SIDES[side], {
      follow: (change) => this.follow(change),
      retry: () => this.retry(turn, side),
      show: ({ record: { path, body } }) => showRequest(path, body),
      save: ({ record }) => this.save(turn, side, record),
      changed: () => this.changed(),
    });
    turn.answers[side]?.root.replaceWith(answer.root);
    if (!answer.root.parentNode) turn.place.append(answer.root);
    turn.answers[side] = answer;
    return answer;
  }

  async send() {
    const prompt = byId("message").value;
    if (prompt.trim() === "") return;
    if (!byId("composer").checkValidity()) {
      byId("settings").open = true; // what is wrong has to be seen
      byId("composer").reportValidity();
      return;
    }
    byId("message").value = "";
    const drawn = settings.chosen();
    const records = this.columns.map((model, side) => this.record(model, side, prompt, drawn));
    const turn = this.add({ id: `${Date.now()}`, prompt, records });
    this.jump();
    await this.run(turn, turn.answers);
  }

  /** Ask for another answer; only the last turn offers that, so that what others went on from stays as it was. */
  async retry(turn, side) {
    if (this.busy) return;
    const { model } = turn.answers[side].record;
    const record = this.record(model, side, turn.prompt, settings.chosen(), this.turns.slice(0, -1));
    turn.vote = null;
    delete rows.pairs[turn.id];
    showRows();
    const answer = this.put(turn, side, record);
    await this.run(turn, [answer]);
  }

  async run(turn, answers) {
    const running = answers.map((answer) => answer.run());
    this.show();
    this.ask(turn);
    await Promise.all(running);
    this.show();
    this.follow(() => this.ask(turn));
    this.changed();
  }

  stop() {
    for (const turn of this.turns) for (const answer of turn.answers) answer.stop();
  }

  /** What is asked of `model` after the turns `before`, and what is known of its answer so far. */
  record(model, side, prompt, drawn, before = this.turns) {
    const known = { text: "", tokens: 0, ttft: null, seconds: 0, cached: null, finish: null, error: "" };
    const fresh = { model, state: "waiting", ...known };
    if (this.complete) return { ...fresh, path: "v1/completions", body: { model, prompt, stream: true, ...drawn } };
    const system = settings.system();
    const body = { model, messages: this.said(system, side, prompt, before), stream: true, ...drawn };
    return { ...fresh, path: "v1/chat/completions", system, body };
  }

  /** The messages of a column up to `prompt`; before a column was there it said what the first one said. */
  said(system, side, prompt, before = this.turns) {
    const message = (role, content) => ({ role, content });
    const said = before.flatMap((turn) => {
      const { text } = (turn.answers[side] ?? turn.answers[0]).record;
      return text ? [message("user", turn.prompt), message("assistant", text)] : [];
    });
    return [...(system.trim() ? [message("system", system)] : []), ...said, message("user", prompt)];
  }

  /** Offer the vote on a turn where there is one to be had. */
  ask(turn) {
    const [a, b] = turn.answers.map((answer) => answer.record);
    const note = (text) => fill(turn.votes, el("p", { class: "note" }, text));
    const pressed = (vote) => ({ "aria-pressed": String(turn.vote === vote) });
    const buttons = Object.keys(VOTES).map((vote) => button(VOTES[vote], () => this.vote(turn, vote), pressed(vote)));
    if (!a?.text || !b?.text || !turn.answers.every((answer) => answer.over)) fill(turn.votes);
    else if (a.text === b.text) note("Both say the same.");
    else if (!pair(a, b)) note("They were not asked the same: no vote.");
    else fill(turn.votes, el("div", { role: "group", "aria-label": "Which answer is better?" }, buttons));
  }

  vote(turn, vote) {
    const [a, b] = turn.answers.map((answer) => answer.record);
    turn.vote = vote;
    rows.pairs[turn.id] = vote === "same" ? null : vote === "A" ? pair(a, b) : pair(b, a);
    this.hidden = false;
    showRows();
    this.show();
    for (const other of turn.votes.querySelectorAll("button")) {
      other.setAttribute("aria-pressed", String(other.textContent === VOTES[vote]));
    }
    announce(vote === "same" ? "noted: as good" : `noted: ${vote} is better, ${vote === "A" ? a.model : b.model}`);
    this.changed();
  }

  save(turn, side, record) {
    rows.chats[`${turn.id}.${side}`] = conversation(record);
    showRows();
    announce("conversation kept");
    this.changed();
  }
}
