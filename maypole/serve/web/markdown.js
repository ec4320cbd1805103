// Markdown as it comes, as elements. What a model writes makes no scripts and no requests, and links to pages only.

import * as smd from "./vendor/streaming-markdown/smd.min.js";
import { el, visible } from "./dom.js";

const TAGS = {
  [smd.PARAGRAPH]: "p", [smd.BLOCKQUOTE]: "blockquote", [smd.LINE_BREAK]: "br", [smd.RULE]: "hr",
  [smd.HEADING_1]: "h3", [smd.HEADING_2]: "h4", [smd.HEADING_3]: "h5", [smd.HEADING_4]: "h6", [smd.HEADING_5]: "h6",
  [smd.HEADING_6]: "h6", [smd.ITALIC_AST]: "em", [smd.ITALIC_UND]: "em", [smd.STRONG_AST]: "strong",
  [smd.STRONG_UND]: "strong", [smd.STRIKE]: "s", [smd.CODE_INLINE]: "code", [smd.CODE_BLOCK]: "code",
  [smd.CODE_FENCE]: "code", [smd.EQUATION_BLOCK]: "code", [smd.EQUATION_INLINE]: "code", [smd.RAW_URL]: "a",
  [smd.LINK]: "a", [smd.IMAGE]: "a", [smd.LIST_UNORDERED]: "ul", [smd.LIST_ORDERED]: "ol", [smd.LIST_ITEM]: "li",
  [smd.CHECKBOX]: "span", [smd.TABLE]: "table", [smd.TABLE_CELL]: "td",
}; // prettier-ignore

const SCROLLER = { class: "scroll", tabindex: 0, role: "region", "aria-label": "table" };

/** Writes pieces of one text into `root`. */
export class Markdown {
  constructor(root) {
    root.replaceChildren();
    this.nodes = [root];
    this.parser = smd.parser({
      data: this.nodes,
      add_token: open,
      end_token: (nodes) => close(nodes, this.parser.pending),
      add_text: (nodes, text) => nodes.at(-1).append(visible(text)),
      set_attr: set,
    });
  }

  write(text) {
    smd.parser_write(this.parser, text);
  }

  end() {
    smd.parser_end(this.parser);
    while (this.nodes.length > 1) close(this.nodes);
  }
}

const DEEP = 24;
const LINKS = { [smd.LINK]: "[", [smd.IMAGE]: "![" };

function open(nodes, type) {
  let parent = nodes.at(-1);
  if (nodes.length > DEEP) {
    nodes.push(parent);
    return;
  }
  if (type === smd.TABLE_ROW) {
    const part = parent.tHead ? parent.tBodies[0] ?? parent.appendChild(el("tbody")) : parent.appendChild(el("thead"));
    nodes.push(part.appendChild(el("tr")));
    return;
  }
  if (type === smd.CODE_BLOCK || type === smd.CODE_FENCE) parent = parent.appendChild(el("pre"));
  if (type === smd.TABLE) parent = parent.appendChild(el("div", SCROLLER));
  const head = type === smd.TABLE_CELL && parent.parentElement.tagName === "THEAD";
  const made = el(head ? "th" : TAGS[type] ?? "span");
  if (type === smd.CHECKBOX) made.append("☐");
  if (type in LINKS) {
    parent.append(LINKS[type]);
    made.className = "maybe"; // brackets are brackets until an address follows
  }
  nodes.push(parent.appendChild(made));
}

function close(nodes, pending) {
  const node = nodes.pop();
  if (node === nodes.at(-1)) return; // too deep to be told apart
  if (node.className === "maybe" && pending === "]") node.after("]");
  if (node.className) node.replaceWith(...node.childNodes);
}

function set(nodes, type, value) {
  const node = nodes.at(-1);
  if (node === nodes.at(-2)) return;
  if (type === smd.CHECKED) node.textContent = "☑";
  else if (type === smd.START) node.setAttribute("start", String(parseInt(value, 10) || 1));
  else if (type === smd.HREF || type === smd.SRC) {
    if (node.className === "maybe") {
      node.previousSibling.remove();
      node.className = harmless(value) ? "" : "refused";
    }
    if (type === smd.SRC) node.prepend("image: ");
    if (!harmless(value)) return;
    Object.assign(node, { href: value, target: "_blank", rel: "noopener noreferrer nofollow", title: visible(value) });
  }
}

function harmless(address) {
  try {
    return ["http:", "https:", "mailto:"].includes(new URL(address).protocol);
  } catch {
    return false; // relative ones would lead to this server
  }
}
