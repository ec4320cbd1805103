// Programs to try: calls with templates, each a text with holes that are given before it or filled by it.

const PIECES = 6;

const GUIDE = `You help a reader who has little time. Keep to what the text says, leave out what it repeats, and write
plain sentences: who did what, when, and why it matters. Name people and places as the text names them. Do not add
anything that the text does not say.

`;

function pieces(text) {
  const parts = text.split(/\n\s*\n/).filter((part) => part.trim());
  const size = Math.max(1, Math.ceil(parts.length / PIECES));
  const begins = parts.map((_, at) => at).filter((at) => at % size === 0);
  return begins.map((at) => parts.slice(at, at + size).join("\n\n"));
}

/** Inputs that are outputs of other calls, under the same names. */
const outputs = (names) => Object.fromEntries(names.map((name) => [name, name]));

/** Name -> what it shows, and the calls that it makes of a text, as [function, template, inputs, output]. */
export const EXAMPLES = {
  "map-reduce": {
    says: "Parts of a text are summed up side by side, behind the same instruction, and then together.",
    calls: (text) => {
      const parts = pieces(text);
      const names = parts.map((_, at) => `s_${at + 1}`);
      const template = (name) => `${GUIDE}Text:\n{{text}}\n\nSummary:{{${name}}}`;
      const maps = parts.map((value, at) => ["map", template(names[at]), { text: { value } }, names[at]]);
      const holes = names.map((name) => `- {{${name}}}`).join("\n");
      const reduce = `${GUIDE}Summaries of the parts:\n${holes}\n\nSummary of all:{{summary}}`;
      return [...maps, ["reduce", reduce, outputs(names), "summary"]];
    },
  },
  chain: {
    says: "A summary is carried through a text: each part is read with what was said of the parts before.",
    calls: (text) =>
      pieces(text).map((value, at) => {
        const before = at ? [`s_${at}`] : [];
        const said = before.map((name) => `Summary so far:\n{{${name}}}\n\n`).join("");
        const template = `${GUIDE}${said}Text:\n{{text}}\n\nSummary:{{s_${at + 1}}}`;
        return ["continue", template, { text: { value }, ...outputs(before) }, `s_${at + 1}`];
      }),
  },
  agents: {
    says: "A writer, three reviewers who read the same draft at once, and a second version.",
    calls: (value) => {
      const roles = ["clarity", "facts", "style"];
      const review = (role) => `${GUIDE}Draft:\n{{draft}}\n\nWhat to mend about its ${role}:{{${role}}}`;
      const remarks = roles.map((role) => `${role}: {{${role}}}`).join("\n");
      const revise = `${GUIDE}Draft:\n{{draft}}\n\nRemarks:\n${remarks}\n\nBetter version:{{final}}`;
      return [
        ["write", `${GUIDE}Notes:\n{{notes}}\n\nDraft:{{draft}}`, { notes: { value } }, "draft"],
        ...roles.map((role) => ["review", review(role), outputs(["draft"]), role]),
        ["revise", revise, outputs(["draft", ...roles]), "final"],
      ];
    },
  },
};
