// How the server is: asked for every two seconds while somebody looks, more and more seldom while it does not answer.

import { Gone, send } from "./server.js";

const EVERY = 2;
const SELDOM = 30;

export class Health {
  /** `told` gets {state, detail, retry, tokens, kv}: state is ready, draining, unwell or gone. */
  constructor(told) {
    this.told = told;
    this.wait = EVERY;
    this.last = null;
    document.addEventListener("visibilitychange", () => !document.hidden && this.now());
  }

  /** Ask at once. */
  async now() {
    clearTimeout(this.timer);
    const turn = (this.turn = {});
    const found = await this.ask();
    if (turn !== this.turn) return; // asked again meanwhile
    this.wait = found.state === "gone" ? Math.min(this.wait * 2, SELDOM) : EVERY;
    this.told({ ...found, retry: this.wait });
    if (!document.hidden) this.timer = setTimeout(() => this.now(), this.wait * 1000);
  }

  async ask() {
    try {
      const answer = await fetch("ready");
      const { status } = await answer.json();
      if (!answer.ok) return status === "draining" ? { state: "draining" } : { state: "unwell", detail: status };
      return { state: "ready", ...(await this.numbers()) };
    } catch {
      return { state: "gone" };
    }
  }

  async numbers() {
    try {
      const text = await (await send("metrics", { quiet: true })).text();
      const number = (name) => Number(text.match(new RegExp(`^maypole_${name} (\\S+)$`, "m"))?.[1]);
      const now = { at: performance.now(), said: number("generated_tokens_total") };
      const last = this.last;
      this.last = now;
      const tokens = last && Math.max(0, ((now.said - last.said) / (now.at - last.at)) * 1000);
      return { tokens, kv: number("kv_usage_ratio") };
    } catch (error) {
      if (error instanceof Gone) throw error;
      return {}; // numbers are for those with a key
    }
  }
}
