// A session of semantic calls at the server: opened, given calls, read, ended. Knows nothing about how it is shown.

import { json, send } from "./server.js";

const at = (session) => `v1/sessions/${encodeURIComponent(session.session_id)}`;

const auth = (session) => (session.session_auth ? { "X-Session-Auth": session.session_auth } : {});

export const open = (signal) => json("v1/sessions", { body: {}, signal });

/** Where its event stream is, and the headers that open it. */
export const feed = (session) => [`${at(session)}/graph?stream=true`, auth(session)];

/** End what runs, whether or not anybody hears of it. */
export async function close(session) {
  await send(at(session), { method: "DELETE", headers: auth(session) }).catch(() => {});
}

/** The text of a variable that has one. */
export async function read(session, id) {
  const { content } = await json(`v1/variables/${encodeURIComponent(id)}`, { headers: auth(session) });
  return content;
}

/**
 * Start `calls`, [function, template, inputs, output], where an input is {value} or the name of another's output.
 *
 * The last output is wanted soon; what is needed for it follows from that. Without `sharing` no call may use what was
 * computed for another.
 */
export async function submit(session, calls, { model, max_tokens, sharing }, signal) {
  const makers = new Map(calls.map(([, , , output], place) => [output, place]));
  const input = ([name, given]) => {
    const from = typeof given === "string" ? { of: { call: makers.get(given), name: given } } : given;
    return { name, is_output: false, ...from };
  };
  const documents = calls.map(([name, template, inputs, output], place) => {
    const wanted = place === calls.length - 1 ? { criteria: "latency" } : {};
    const made = { name: output, is_output: true, sampling: { max_tokens, temperature: 0 }, ...wanted };
    const parameters = [...Object.entries(inputs).map(input), made];
    return { name, template, parameters, models: [model], cache_scope: sharing ? "session" : "call" };
  });
  const body = { session_id: session.session_id, calls: documents };
  return json("v1/semantic_calls/batch", { body, headers: auth(session), signal });
}
