// An answer as pieces, each a token or what lies between two; and the pieces as elements to point at and go through.

import { make } from "./dom.js";
import { percent, signed, step, tokenWords } from "./words.js";

// For each answer its pieces {text, index, token}; `index` is in `tokens`, and both are undefined between tokens.
export function pieces(tokens, answers) {
  return answers.map((answer, turn) => {
    const characters = [...answer]; // places are of characters, and strings here are of UTF-16
    const found = [];
    let end = 0;
    tokens.forEach((token, index) => {
      if (token.turn !== turn) return;
      // What lies between two tokens belongs to neither; bytes of one character come as several tokens of one place.
      const special = token.start === token.end;
      if (!special && token.start > end) found.push({ text: characters.slice(end, token.start).join("") });
      const fresh = characters.slice(Math.max(token.start, end), token.end).join("");
      found.push({ text: special ? token.text : fresh || "·", token, index, special });
      end = Math.max(end, token.end);
    });
    if (end < characters.length) found.push({ text: characters.slice(end).join("") });
    return found;
  });
}

// One list a turn, which Tab enters once and arrows go through; `of` says whose tokens they are where two are shown.
export function tokenLists(score, answers, of) {
  return pieces(score.tokens, answers).map((found, turn) => {
    const name = answers.length > 1 ? `Tokens of answer ${turn + 1}` : "Tokens of the answer";
    const box = make("div", { className: "tokens", role: "listbox" }, ...found.map(elementOf));
    box.setAttribute("aria-label", name + of);
    box.setAttribute("aria-orientation", "horizontal");
    const [first] = box.querySelectorAll(".token");
    if (first) first.tabIndex = 0;
    box.addEventListener("keydown", walk);
    return box;
  });
}

function elementOf({ text, token, index, special }) {
  if (!token) return make("span", { text });
  const className = `token ${step(token.gain)}${special ? " special" : ""}`;
  const element = make("span", { text, className, role: "option", tabIndex: -1 });
  element.dataset.index = index;
  element.setAttribute("aria-label", tokenWords(token));
  element.setAttribute("aria-selected", "false");
  return element;
}

function walk(event) {
  const all = [...event.currentTarget.querySelectorAll(".token")];
  const from = all.indexOf(document.activeElement);
  const steps = { ArrowRight: from + 1, ArrowDown: from + 1, ArrowLeft: from - 1, ArrowUp: from - 1, Home: 0,
    End: all.length - 1 };
  const to = steps[event.key];
  if (to === undefined) return;
  event.preventDefault();
  if (!all[to]) return;
  all[from]?.setAttribute("tabindex", "-1");
  all[to].tabIndex = 0;
  all[to].focus();
}

// The same in rows, for reading one after the other.
export function tableRows(score) {
  return score.tokens.map((token) => {
    const cells = [signed(token.gain), `${token.clean_logprob.toFixed(3)} (${percent(token.clean_logprob)})`,
      `${token.reference_logprob.toFixed(3)} (${percent(token.reference_logprob)})`];
    const head = make("th", { text: token.text, scope: "row", className: step(token.gain) });
    return make("tr", {}, head, ...cells.map((text) => make("td", { text })));
  });
}
