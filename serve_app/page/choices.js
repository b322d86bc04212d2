// What scores: the server's only model and reference, or one or two of several.

import { at, make } from "./dom.js";

let choices = []; // {model, reference, who}; the first is the default

// `info`: the answer of GET /v1/model. A server that holds one model with one reference tells no `models`.
export function setChoices(info) {
  const models = info.models ?? [];
  const manyReferences = new Set(models.flatMap(({ references }) => references)).size > 1;
  choices = models.flatMap(({ name, references }) => references.map((reference) => ({
    model: name,
    reference,
    who: [models.length > 1 && name, manyReferences && reference].filter(Boolean).join(" · "),
  })));
  at("choices").hidden = choices.length < 2;
  fill("scoredby", []);
  fill("comparedwith", [["", "nothing"]]);
  const names = models.length > 1 ? `Models: ${models.map(({ name }) => name).join(", ")}.`
    : `Model: ${info.name}, ${info.dtype}.`;
  at("model").textContent = names;
}

function fill(id, before) {
  const rows = [...before, ...choices.map(({ who }, index) => [String(index), who])];
  at(id).replaceChildren(...rows.map(([value, text]) => make("option", { value, text })));
}

// What is asked for, one entry a score; a single {} where there is no choice.
export function chosen() {
  if (choices.length < 2) return [{}];
  const values = [at("scoredby").value, at("comparedwith").value];
  return [...new Set(values)].filter((value) => value !== "").map((value) => choices[Number(value)]);
}
