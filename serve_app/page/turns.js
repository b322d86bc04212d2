// The form's turns: a question and an answer each, from one up.

import { at, copy, tell } from "./dom.js";

const boxes = () => [...at("turns").children];
export const fields = (name) => boxes().map((box) => box.querySelector(`.${name}`));
export const questions = () => fields("question").map((field) => field.value);

export function turns() {
  return boxes().map((box) => ({
    question: box.querySelector(".question").value,
    answer: box.querySelector(".answer").value,
  }));
}

export function setQuestions(texts) {
  fields("question").forEach((field, index) => { field.value = texts[index]; });
}

export function setTurns(list) {
  at("turns").replaceChildren(...list.map(({ question, answer }) => box(question, answer)));
  number();
}

export function addTurn() {
  at("turns").append(box("", ""));
  number();
  fields("question").at(-1).focus();
}

// `before(index)` is called while the turn is still there.
export function listenForRemoval(before) {
  at("turns").addEventListener("click", (event) => {
    const box = event.target.closest(".removeturn")?.closest(".turn");
    if (!box) return;
    const index = boxes().indexOf(box);
    const rest = before(index);
    box.remove();
    setQuestions(rest);
    number();
    tell(`Turn ${index + 1} is removed.`);
    fields("question")[Math.max(0, index - 1)].focus();
    at("turns").dispatchEvent(new Event("input"));
  });
}

function box(question, answer) {
  const turn = copy("turn");
  turn.querySelector(".question").value = question;
  turn.querySelector(".answer").value = answer;
  return turn;
}

// Labels and ids by place; the only turn has no number.
function number() {
  const all = boxes();
  all.forEach((turn, index) => {
    const suffix = all.length > 1 ? ` ${index + 1}` : "";
    turn.querySelector("legend").textContent = `Turn ${index + 1}`;
    turn.querySelector("legend").hidden = all.length === 1;
    for (const [name, words] of [["question", `Question${suffix}`], ["answer", `Answer${suffix} to be judged`]]) {
      const label = turn.querySelector(`.${name}label`);
      turn.querySelector(`.${name}`).id = label.htmlFor = `${name}${index + 1}`;
      label.textContent = words;
    }
    const button = turn.querySelector(".removeturn");
    button.textContent = `Remove turn ${index + 1}`;
    button.hidden = all.length === 1;
  });
}
