// The page: a sample in, what the image contributes to it out.

import { chosen, setChoices } from "./choices.js";
import { at, fail, make, tell } from "./dom.js";
import { drawMoved, images, listenForFiles, questionsWithout, setImages } from "./images.js";
import { fromFragment, toFragment } from "./link.js";
import { settle } from "./marks.js";
import { listenForTau, setTau, show, summary, tau } from "./result.js";
import { ask } from "./server.js";
import { addTurn, fields, listenForRemoval, setTurns, turns } from "./turns.js";

let busy = false;

function wanting() {
  if (!images().length) return ["Choose an image first.", at("file")];
  const list = turns();
  for (const [name, words] of [["question", "a question"], ["answer", "the answer that is to be judged"]]) {
    const index = list.findIndex((turn) => !turn[name].trim());
    if (index >= 0) return [`Write ${words}${list.length > 1 ? ` in turn ${index + 1}` : ""}.`, fields(name)[index]];
  }
  return null;
}

async function score(event) {
  event.preventDefault();
  if (busy) return;
  const missing = wanting();
  if (missing) {
    fail(missing[0]);
    missing[1].focus();
    return;
  }
  setBusy(true);
  tell("Scoring …");
  const list = turns();
  const sent = { images: images(), questions: list.map((turn) => turn.question), answers: list.map((turn) => turn.answer) };
  const outcomes = await Promise.allSettled(chosen().map((choice) => scoreBy(choice, sent)));
  setBusy(false);
  const results = outcomes.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  const errors = outcomes.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
  if (results.length) show(results, sent);
  if (errors.length) refused(errors);
  else tell(summary());
}

async function scoreBy({ model, reference, who }, { images: pictures, questions, answers }) {
  const placed = settle(questions, pictures.length);
  const messages = placed.flatMap((question, index) => [
    { role: "user", content: question }, { role: "assistant", content: answers[index] },
  ]);
  // Without τ, which is the page's own matter: a key's policy may have thresholds, and takes none beside them.
  const body = { messages, images: pictures.map(({ uri }) => uri), reference_images: true };
  if (who) Object.assign(body, { model, reference });
  try {
    const { found, text } = await ask("v1/score", { body, key: at("key").value });
    return { score: found, text, who: who ?? `${found.model.name}, without the image: ${found.reference.name}` };
  } catch (error) {
    if (who) error.message = `${who}: ${error.message}`;
    throw error;
  }
}

function setBusy(value) {
  busy = value;
  // Not `disabled`, which would take the focus away from who works by keyboard.
  at("send").setAttribute("aria-disabled", String(value));
}

function refused(errors) {
  const words = [...new Set(errors.map((error) => error.message))].join(" ");
  if (errors.some((error) => error.status === 401)) {
    at("keyrow").hidden = false;
    at("key").focus();
  }
  fail(words);
}

async function loadModel() {
  try {
    const { found } = await ask("v1/model", { key: at("key").value });
    setChoices(found);
    if (found.tau !== null && (fromFragment(location.hash)?.tau ?? null) === null) setTau(found.tau);
    return true;
  } catch (error) {
    refused([error]);
    if (error.status === 503) setTimeout(loadAgain, 2000); // it loads its model still
    return false;
  }
}

async function loadAgain() {
  if (await loadModel()) tell("The model is there.");
}

async function loadExamples() {
  const { found } = await ask("page/examples.json");
  at("examples").append(...found.map((example) => {
    const button = make("button", { type: "button" }, make("img", { src: example.image, alt: "" }), example.title);
    button.addEventListener("click", () => {
      setTurns([example]);
      setImages([{ uri: example.image, name: example.title }]);
      at("form").requestSubmit();
    });
    return button;
  }));
}

async function copyLink() {
  history.replaceState(null, "", toFragment(turns(), tau()));
  const carries = "It carries the questions, the answers and τ, not the images.";
  try {
    await navigator.clipboard.writeText(location.href); // missing or refused where the page isn't trusted
    tell(`The link is copied. ${carries}`);
  } catch {
    tell(`The link is in the address bar. ${carries}`);
  }
}

function openLink() {
  const linked = fromFragment(location.hash);
  if (!linked) return;
  setTurns(linked.turns);
  if (linked.tau !== null) setTau(linked.tau);
  setImages([]);
  tell("The text came with the link. Images don't: add them, then score.");
}

setTurns([{ question: "", answer: "" }]);
openLink();
addEventListener("hashchange", openLink);
at("form").addEventListener("submit", score);
at("turns").addEventListener("input", drawMoved); // where images stand is in the questions
at("addturn").addEventListener("click", () => { addTurn(); drawMoved(); });
at("copylink").addEventListener("click", copyLink);
at("key").addEventListener("change", async () => { if (await loadModel()) tell("The key is right."); });
listenForRemoval(questionsWithout);
listenForFiles();
listenForTau();
loadExamples().catch((error) => fail(error.message));
loadModel();
