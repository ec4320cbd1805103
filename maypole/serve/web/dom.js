// Elements from names, attributes and texts: the only way in which this page makes any, so that no text becomes markup.

const HIDDEN = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Noncharacter_Code_Point}]/gu;

const code = (character) => character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

/** `text` with characters that reorder, hide or command as codes, e.g. ⟨U+202E⟩; line breaks and tabs stay. */
export function visible(text) {
  return String(text).replaceAll("\r\n", "\n").replace(HIDDEN, (character) => `⟨U+${code(character)}⟩`);
}

/** JSON that means the same, with the characters that `visible` shows as codes written as escapes. */
export function quoted(value) {
  const unit = (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value).replace(HIDDEN, (character) => character.split("").map(unit).join(""));
}

/** An element; attributes whose name starts with "on" are listeners, false and null leave one out. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : visible(value));
  }
  const there = children.flat().filter((child) => child != null);
  made.append(...there.map((child) => (child instanceof Node ? child : visible(child))));
  return made;
}

export function button(text, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, text);
}

/** Replace what stands in `parent`. */
export function fill(parent, ...children) {
  parent.replaceChildren(...el("div", {}, ...children).childNodes);
}

export const byId = (id) => document.getElementById(id);

const said = [];
let saying = null;

/** Tell those who listen to the page; sentences that come fast are told together, at most every two seconds. */
export function announce(sentence) {
  said.push(visible(sentence));
  saying ??= setTimeout(tell, 100);
}

function tell() {
  byId("said").textContent = said.splice(0).slice(-6).join(". ");
  saying = setTimeout(() => {
    saying = null;
    if (said.length) tell();
  }, 2000);
}

/** Offer `text` as a file. */
export function download(name, text) {
  const href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  const link = el("a", { href, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

/** Copy `text`; the button says for a moment whether that was possible. */
export async function copy(text, from) {
  const before = from.textContent;
  from.textContent = (await copied(text)) ? "copied" : "not allowed";
  announce(from.textContent);
  setTimeout(() => (from.textContent = before), 1500);
}

async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  // Pages that came over plain HTTP from another machine have no clipboard.
  const area = el("textarea", { class: "unseen" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
