// A request as a reader would send it from elsewhere: with curl, or with OpenAI's client for Python.

import { button, byId, copy, el, fill, quoted } from "./dom.js";
import { hasKey } from "./server.js";

const here = (path) => new URL(path, document.baseURI).href;

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

export function asCurl(path, body) {
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $MAYPOLE_KEY"` : "";
  return `curl -N ${shell(here(path))} -H 'Content-Type: application/json'${key} \\\n  -d ${shell(quoted(body))}`;
}

/** A value as Python writes it; characters that nobody sees stand as escapes. */
function python(value, indent = "") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") {
    const whole = (two) => JSON.parse(`"${two}"`).codePointAt(0).toString(16).padStart(8, "0");
    return quoted(value).replace(/\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}/g, (two) => `\\U${whole(two)}`);
  }
  const deeper = `${indent}    `;
  const list = Array.isArray(value);
  const named = ([name, item]) => `${list ? "" : `${quoted(name)}: `}${python(item, deeper)}`;
  const items = Object.entries(value).map(named);
  const [open, close] = list ? "[]" : "{}";
  const short = `${open}${items.join(", ")}${close}`;
  if (short.length < 100 && !short.includes("\n")) return short;
  return `${open}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${close}`;
}

export function asPython(path, body) {
  const call = path === "v1/completions" ? "completions" : "chat.completions";
  const said = path === "v1/completions" ? "chunk.choices[0].text" : 'chunk.choices[0].delta.content or ""';
  const key = hasKey() ? 'os.environ["MAYPOLE_KEY"]' : '"none"';
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${python(value, "    ")},\n`);
  const client = `client = openai.OpenAI(base_url=${python(here("v1"))}, api_key=${key})`;
  return (
    `${hasKey() ? "import os\n\n" : ""}import openai\n\n${client}\n` +
    `answer = client.${call}.create(\n${fields.join("")})\nfor chunk in answer:\n    print(${said}, end="")\n`
  );
}

/** Show `body` in a dialog. */
export function show(path, body) {
  const part = (title, text) => {
    const taking = button("copy", () => copy(text, taking), { "aria-label": `copy ${title}` });
    return [el("h3", {}, title, " ", taking), el("pre", { tabindex: 0 }, el("code", {}, text))];
  };
  fill(byId("request-text"), part("curl", asCurl(path, body)), part("Python, openai", asPython(path, body)));
  byId("request").showModal();
}
