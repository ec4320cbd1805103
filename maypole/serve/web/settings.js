// How answers are drawn: the fields of the form, and what of a request they make. Knows nothing about who answers.

import { byId } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const NAMES = ["system", ...NUMBERS, "stop"];

const field = (name) => byId(`set-${name}`);

/** Called whenever a field changes. */
export function onChange(told) {
  byId("settings").addEventListener("input", told);
}

/** The fields as texts, to be kept. */
export function kept() {
  return Object.fromEntries(NAMES.map((name) => [name, field(name).value]));
}

export function restore(values) {
  for (const name of NAMES) if (typeof values?.[name] === "string") field(name).value = values[name];
}

/** What was set, in the words of a request; an empty field is left out, and a seed is drawn where none is set. */
export function chosen() {
  const found = { seed: Math.floor(Math.random() * 2 ** 31) };
  for (const name of NUMBERS) if (field(name).value.trim() !== "") found[name] = Number(field(name).value);
  const stop = field("stop").value.split("\n").filter((line) => line !== "");
  if (stop.length) found.stop = stop.map((line) => line.replaceAll("\\n", "\n"));
  return found;
}

export const system = () => field("system").value;
