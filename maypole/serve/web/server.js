// Requests to the server that this page came from, with the reader's key. Knows nothing about what is asked.

import { createParser } from "./vendor/eventsource-parser/index.js";

/** What the server refused: its status, code and words; `after` is how many seconds it wants to be left alone. */
export class Refused extends Error {
  constructor(status, { message, code, param } = {}, after = 0) {
    super(message || `the server answered ${status}`);
    Object.assign(this, { status, code, param, after });
  }
}

/** Nobody answered. */
export class Gone extends Error {
  constructor() {
    super("the server does not answer");
  }
}

const KEY = "maypole.key";
let askForKey = null;
let asked = null;

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** `ask(wrong)` resolves to a key, or null where the reader has none. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** The answer to a request that was accepted; `quiet` leaves the reader alone where a key is needed. */
export async function send(path, { body, method, signal, headers = {}, quiet = false } = {}) {
  const text = body && JSON.stringify(body);
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const own = { ...headers };
    if (body) own["Content-Type"] = "application/json";
    if (key !== null) own.Authorization = `Bearer ${key}`;
    const answer = await reach(path, { method: method ?? (body ? "POST" : "GET"), signal, headers: own, body: text });
    if (answer.ok) return answer;
    const refused = new Refused(answer.status, await problem(answer), Number(answer.headers.get("Retry-After")) || 0);
    if (answer.status !== 401 || quiet || !(await newKey(key))) throw refused;
  }
}

/** A JSON document. */
export async function json(path, options) {
  return (await send(path, options)).json();
}

/** The data of each server-sent event; ends with the connection. */
export async function* events(path, options) {
  const answer = await send(path, options);
  const found = [];
  const parser = createParser({ onEvent: (event) => found.push(event.data) });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      parser.feed(value);
      yield* found.splice(0);
    }
  } finally {
    reader.cancel().catch(() => {}); // it is over already
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Gone();
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Gone();
  }
}

async function problem(answer) {
  try {
    return (await answer.json()).error;
  } catch {
    return {}; // what stands between us and the server may answer in words of its own
  }
}

/** Whether there now is another key than `used`. All who need one wait for the same question. */
async function newKey(used) {
  if (sessionStorage.getItem(KEY) !== used) return true;
  asked ??= askForKey(used !== null).finally(() => (asked = null));
  const key = await asked;
  if (key === null) return false;
  sessionStorage.setItem(KEY, key);
  return true;
}
