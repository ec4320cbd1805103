// One answer: asked for, shown as it comes, and what became of it. Knows nothing about other answers.

import { announce, button, copy, el, fill, visible } from "./dom.js";
import { Markdown } from "./markdown.js";
import { events, Refused } from "./server.js";

const AGAIN = 30;

/**
 * `record` is what there is to keep: {model, path, body, text, state, tokens, ttft, seconds, cached, finish, error}.
 * `side` is "A" or "B"; `page` has retry(), save(), show() of the request, and changed() for all that happens.
 */
export class Answer {
  constructor(record, side, page) {
    Object.assign(this, { record, side, page });
    this.text = el("div", { class: "text" });
    this.note = el("p", { class: "note" });
    this.facts = el("p", { class: "facts" });
    this.name = el("b", { class: "name" });
    const attributes = { class: "answer", "aria-label": `Answer ${side}` };
    this.root = el("article", attributes, this.name, this.text, this.note, this.facts);
    this.markdown = new Markdown(this.text);
    this.written = 0;
    this.paint();
  }

  get over() {
    return this.record.state === "done" || this.record.state === "failed";
  }

  /** Ask the server; what it refuses because it is full is asked again. */
  async run() {
    this.stopping = new AbortController();
    for (let wait = 1; ; wait = Math.min(wait * 2, AGAIN)) {
      try {
        await this.stream();
        if (this.record.finish === null) this.end("failed", "the connection ended before the answer did");
        else this.end("done");
      } catch (error) {
        const full = error instanceof Refused && error.status === 429;
        if (full && (await this.pause(Math.max(wait, error.after), error.message))) continue;
        if (this.stopping.signal.aborted) this.end("done", "", "stopped");
        else this.end("failed", error.message);
      }
      return;
    }
  }

  stop() {
    this.stopping?.abort();
  }

  async stream() {
    const { record } = this;
    const begin = performance.now();
    // Ids are asked for because a piece of text may be several tokens, and a token may be no text yet.
    const body = { ...record.body, stream_options: { include_usage: true }, return_token_ids: true };
    for await (const data of events(record.path, { body, signal: this.stopping.signal })) {
      if (data === "[DONE]") return;
      const { choices, usage, error } = JSON.parse(data);
      if (error) throw new Refused(0, error);
      const [choice] = choices;
      if (choice) {
        record.tokens += choice.token_ids?.length ?? 0;
        if (record.tokens && record.ttft === null) record.ttft = (performance.now() - begin) / 1000;
        record.finish = choice.finish_reason ?? record.finish;
        record.state = "running";
        record.text += choice.text ?? choice.delta.content ?? "";
      }
      if (usage) {
        record.tokens = usage.completion_tokens;
        record.cached = usage.prompt_tokens_details.cached_tokens;
        record.prompt_tokens = usage.prompt_tokens;
      }
      record.seconds = (performance.now() - begin) / 1000;
      this.frame ??= requestAnimationFrame(() => this.paint()); // more often nobody could see it
      this.page.changed();
    }
  }

  /** Show what has come. */
  paint() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    this.page.follow(() => {
      this.markdown.write(this.record.text.slice(this.written));
      this.written = this.record.text.length;
      if (this.over) this.markdown.end();
      this.show();
    });
  }

  /** Count `seconds` down; false where the reader stops it. */
  async pause(seconds, why) {
    for (let left = Math.ceil(seconds); left > 0 && !this.stopping.signal.aborted; left -= 1) {
      this.note.textContent = visible(`${why}; asking again in ${left} s`);
      await new Promise((done) => {
        const timer = setTimeout(done, 1000);
        this.stopping.signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
      });
    }
    this.note.textContent = "";
    return !this.stopping.signal.aborted;
  }

  end(state, error = "", finish = this.record.finish) {
    Object.assign(this.record, { state, error, finish });
    this.paint();
    this.page.changed();
    const how = finish === "stopped" ? "stopped" : "finished";
    announce(`${this.side} ${error ? `failed: ${error}` : `${how}, ${this.record.tokens} tokens`}`);
  }

  /** Show the model's name, or not. */
  reveal(shown) {
    fill(this.name, this.side, " ", el("span", { class: "model" }, shown ? this.record.model : "hidden"));
  }

  show() {
    const { record } = this;
    this.root.dataset.state = record.state;
    this.root.setAttribute("aria-busy", String(!this.over));
    this.note.className = record.error ? "note error" : "note";
    if (record.error) this.note.textContent = visible(`✗ ${record.text ? "Cut off" : "No answer"}: ${record.error}`);
    else if (record.state === "waiting") this.note.textContent ||= "○ waiting";
    else this.note.textContent = this.over && !record.text ? "An empty answer (0 characters)." : "";
    const facts = [`${record.tokens} tok`];
    if (record.ttft !== null) {
      facts.push(`TTFT ${record.ttft.toFixed(2)} s`);
      const left = record.seconds - record.ttft;
      if (record.tokens > 1 && left > 0) facts.push(`${Math.round((record.tokens - 1) / left)} tok/s`);
    }
    if (record.cached !== null) facts.push(`${record.cached} cached`);
    facts.push(`seed ${record.body.seed}`);
    if (record.finish) facts.push(record.finish);
    const words = el("span", { class: "numbers" }, record.state === "waiting" ? "" : facts.join(" · "));
    if (!this.over) {
      fill(this.facts, words);
      return;
    }
    if (this.facts.dataset.whole && this.facts.dataset.whole === facts.join()) return;
    this.facts.dataset.whole = facts.join();
    const named = (what) => ({ class: `quiet ${what}`, "aria-label": `${what} ${this.side}` });
    const say = (what, onclick) => button(what, onclick, named(what));
    const copying = say("copy", () => copy(record.text, copying));
    const acts = [say("retry", () => this.page.retry(this)), say("request", () => this.page.show(this))];
    if (record.text) acts.unshift(copying);
    if (record.text && record.body.messages) acts.push(say("save", () => this.page.save(this)));
    fill(this.facts, words, el("span", { class: "acts" }, acts));
  }
}
