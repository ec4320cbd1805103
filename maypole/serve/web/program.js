// A program as it runs: an example that is started here, or a session that somebody else opened.

import { announce, byId, el, fill, visible } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { watch } from "./feed.js";
import { countsOf, Graph, number } from "./graph.js";
import * as sessions from "./session.js";
import { LEGEND, Timeline } from "./timeline.js";

export class Program {
  constructor() {
    this.runs = [];
    this.session = null;
    fill(byId("example"), Object.keys(EXAMPLES).map((name) => el("option", {}, name)));
    fill(byId("legend"), LEGEND.map((name) => el("span", { class: `key ${name}` }, name)));
    byId("example").addEventListener("change", () => this.describe());
    byId("launch").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) {
        this.stop();
        this.say("Stopped.");
      } else this.run(true);
    });
    byId("unshared").addEventListener("click", () => this.run(false));
    byId("open").addEventListener("submit", (event) => {
      event.preventDefault();
      this.open({ session_id: byId("session").value.trim(), session_auth: byId("session-auth").value.trim() });
    });
    this.describe();
  }

  serve(models) {
    const chosen = models.indexOf(this.model);
    this.models = models;
    fill(byId("program-model"), models.map((model) => el("option", {}, model)));
    byId("program-model").selectedIndex = Math.max(0, chosen);
  }

  get model() {
    return this.models?.[byId("program-model").selectedIndex];
  }

  get running() {
    return this.stopping !== undefined && !this.stopping.signal.aborted;
  }

  describe() {
    byId("program-says").textContent = EXAMPLES[byId("example").value].says;
  }

  /** Start the example; without sharing nothing that was computed for one call is used for another. */
  async run(sharing) {
    const name = byId("example").value;
    const text = byId("program-text").value;
    if (!text.trim()) {
      this.say("There is no text to work on.", true);
      return;
    }
    const how = { model: this.model, max_tokens: Number(byId("program-tokens").value), sharing };
    await this.follow(`${name}, ${sharing ? "sharing" : "without sharing"}`, async (signal) => {
      this.session = await sessions.open(signal);
      await sessions.submit(this.session, EXAMPLES[name].calls(text), how, signal);
      return this.session;
    });
  }

  /** Watch a session that somebody else opened, until they end it. */
  async open(session) {
    await this.follow(`session ${session.session_id}`, async () => session);
  }

  /** Show what happens in the session that `begun` gives. */
  async follow(name, begun) {
    this.stopping?.abort();
    this.stopping = new AbortController();
    const { signal } = this.stopping;
    this.clear();
    try {
      const session = await begun(signal);
      const ours = session === this.session;
      let frame = null;
      const paint = async (picture) => {
        frame = null;
        if (signal.aborted) return;
        this.show(picture);
        if (ours && picture.over) await this.ended(name, picture, signal);
      };
      const changed = (picture) => (frame ??= requestAnimationFrame(() => paint(picture)));
      // In a frame of its own turn: what is still to be painted must not wipe it away.
      const lost = (seconds) => requestAnimationFrame(() => {
        if (!signal.aborted) this.say(`The connection is lost. Asking again in ${seconds} s.`, true);
      });
      await watch(...sessions.feed(session), signal, changed, lost);
      if (!ours) this.say("The session has ended.");
    } catch (error) {
      if (error.name !== "AbortError") {
        this.say(error.message, true);
        announce(`the program failed: ${error.message}`);
      }
    }
    if (signal === this.stopping.signal) this.stop();
  }

  clear() {
    this.session = null;
    this.graph = new Graph(byId("graph"));
    this.timeline = new Timeline(byId("calls"), byId("axis"));
    this.counted = "";
    fill(byId("results"));
    byId("program-empty").hidden = true;
    byId("picture").hidden = true;
    this.say("");
    this.buttons();
  }

  /** Watch no more, and end the session if it is ours. */
  stop() {
    this.stopping.abort();
    if (this.session) sessions.close(this.session);
    this.session = null;
    this.buttons();
  }

  /** The server ends: it must not wait for who only watches. */
  leave() {
    if (!this.running || this.session) return;
    this.stop();
    this.say("The server is shutting down.");
  }

  buttons() {
    byId("run").textContent = this.running ? "Stop" : "Run";
    byId("unshared").disabled = this.running;
  }

  say(text, wrong = false) {
    byId("program-state").className = wrong ? "note error" : "note";
    byId("program-state").textContent = visible(text);
    byId("program-state").hidden = text === "";
  }

  show(picture) {
    this.say("");
    byId("picture").hidden = picture.nodes.size === 0;
    this.graph.draw(picture);
    this.timeline.draw(picture);
    fill(byId("totals"), facts(picture.totals));
    const counted = countsOf([...picture.nodes.values()]);
    if (counted && counted !== this.counted) announce(counted);
    this.counted = counted;
  }

  /** Nothing more will happen: what was said at the end, and what it cost beside other runs. */
  async ended(name, picture, signal) {
    const { session } = this;
    if (!session) return; // told already
    this.session = null;
    const last = [...picture.edges.values()].filter((edge) => edge.from && edge.to.length === 0);
    const texts = last.map((edge) => (edge.error ? null : sessions.read(session, edge.id).catch(() => null)));
    const said = await Promise.all(texts);
    sessions.close(session);
    if (signal.aborted) return;
    const result = ({ name: output, error }, at) => {
      const lost = said[at] === null && `✗ ${error ?? "could not be read"}`;
      return [el("h3", {}, output), el("p", { class: "result" }, lost || said[at] || "An empty text (0 characters).")];
    };
    fill(byId("results"), last.flatMap(result));
    this.runs.push({ name, ...picture.totals });
    byId("runs").hidden = false;
    const cells = (totals) => numbers(totals).map((text) => el("td", { class: "n" }, text));
    fill(byId("run-rows"), this.runs.map((run) => el("tr", {}, el("th", { scope: "row" }, run.name), cells(run))));
    this.stop();
  }
}

function numbers({ computed_tokens, reused_tokens, said_tokens, seconds }) {
  return [...[computed_tokens, reused_tokens, said_tokens].map(number), seconds.toFixed(2)];
}

function facts(totals) {
  const names = ["computed", "reused", "out", "seconds"];
  return numbers(totals).map((text, at) => el("div", {}, el("dt", {}, names[at]), el("dd", {}, text)));
}
