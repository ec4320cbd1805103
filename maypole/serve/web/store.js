// What a reload must not lose, kept for this tab. The beginning of a chat goes first where it is too long to be kept.

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

/** Keep `state`; false where not all of it could be kept: turns are left out, the oldest first. */
export function save(state) {
  let turns = state.turns;
  for (;;) {
    const text = JSON.stringify({ ...state, turns });
    if (text.length <= MOST || turns.length === 0) {
      if (text.length <= MOST) sessionStorage.setItem(NAME, text);
      return text.length <= MOST && turns.length === state.turns.length;
    }
    turns = turns.slice(1);
  }
}
