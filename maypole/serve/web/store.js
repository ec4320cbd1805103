// What a reload must not lose, kept for this tab: settings, rows, and a chat unless it is too long.

const NAME = "maypole.chat";
const MOST = 200_000;

/** What was kept, or {}. */
export function load() {
  try {
    return JSON.parse(sessionStorage.getItem(NAME)) ?? {};
  } catch {
    return {}; // written by another version
  }
}

/** Keep `state`; false where it is too long to be kept with its turns, or even without. */
export function save(state) {
  const [whole, rest] = [state, { ...state, turns: [] }].map((one) => JSON.stringify(one));
  const text = whole.length <= MOST ? whole : rest;
  if (text.length <= MOST) sessionStorage.setItem(NAME, text);
  return text === whole && text.length <= MOST;
}
