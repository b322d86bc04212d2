"use strict";

const at = (id) => document.getElementById(id);
// The steps of the legend: least |gain| in nats, class, words.
const STEPS = [[1, "3"], [0.3, "2"], [0.1, "1"]];
let image = null; // data URI of the chosen image
let scored = null; // the last answer

const told = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(3);
const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share >= 10 ? `${share.toFixed(0)} %` : share >= 0.01 ? `${share.toPrecision(2)} %` : "under 0.01 %";
};

function step(gain) {
  const found = STEPS.find(([least]) => Math.abs(gain) >= least);
  return found ? (gain > 0 ? "p" : "m") + found[1] : "";
}

function show(uri) {
  image = uri;
  at("preview").src = uri;
  at("preview").alt = "The chosen image";
  at("preview").hidden = false;
  at("hint").hidden = true;
}

function read(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) return fail("That file is not an image.");
  const reader = new FileReader();
  reader.onload = () => { fail(""); show(reader.result); };
  reader.onerror = () => fail("That file can't be read.");
  reader.readAsDataURL(file);
}

function fail(words) { at("error").textContent = words; }

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    at("key").hidden = at("keylabel").hidden = false;
    at("key").focus();
    throw new Error("This server wants a key.");
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ? body.error.message : `The server answered ${answer.status}.`);
  return body;
}

async function score(event) {
  event.preventDefault();
  if (!image) return fail("Choose an image first.");
  if (!at("question").value.trim()) return fail("Write a question.");
  if (!at("answer").value.trim()) return fail("Write the answer that is to be judged.");
  fail("");
  at("send").disabled = true;
  try {
    const sent = { question: at("question").value, answer: at("answer").value, image, reference_images: true };
    const body = JSON.stringify(sent);
    scored = await ask("v1/score", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    scored.answer = sent.answer;
    render();
  } catch (error) {
    fail(error instanceof TypeError ? "The server can't be reached." : error.message);
  } finally {
    at("send").disabled = false;
  }
}

function render() {
  at("result").hidden = false;
  at("vig").textContent = told(scored.vig);
  at("losses").textContent = `loss ${scored.clean_loss.toFixed(3)} with the image, ` +
    `${scored.reference_loss.toFixed(3)} without; ${scored.num_answer_tokens} tokens`;
  at("clear").src = image;
  const blurred = scored.reference_images && scored.reference_images[0];
  at("blurred").parentElement.hidden = !blurred;
  if (blurred) at("blurred").src = blurred;
  at("blurnote").textContent = `without: blurred, kernel ${scored.reference.kernels[0]}`;
  const place = at("tokens");
  place.replaceChildren();
  const turn = document.createElement("span");
  turn.className = "turn";
  let told_to = 0;
  scored.tokens.forEach((token, index) => {
    // What lies between two tokens belongs to neither; bytes of one character come as several tokens of one place.
    if (token.start > told_to) turn.append(scored.answer.slice(told_to, token.start));
    const element = document.createElement("span");
    const special = token.start === token.end;
    element.className = `token ${step(token.gain)}${special ? " special" : ""}`;
    const fresh = scored.answer.slice(Math.max(token.start, told_to), token.end);
    element.textContent = special ? token.text : fresh || "·";
    told_to = Math.max(told_to, token.end);
    element.tabIndex = 0;
    element.dataset.index = index;
    element.setAttribute("aria-label", words(token));
    turn.append(element);
  });
  place.append(turn);
  mask();
}

function words(token) {
  return `“${token.text}”: gain ${told(token.gain)} nats; log-prob ${token.clean_logprob.toFixed(3)} with the image ` +
    `(${percent(token.clean_logprob)}), ${token.reference_logprob.toFixed(3)} without ` +
    `(${percent(token.reference_logprob)})`;
}

function detail(event) {
  const element = event.target.closest(".token");
  if (element && scored) at("detail").textContent = words(scored.tokens[element.dataset.index]);
}

function mask() {
  if (!scored) return;
  const tau = Number(at("taunumber").value);
  let active = 0;
  for (const element of at("tokens").querySelectorAll(".token")) {
    const keeps = scored.tokens[element.dataset.index].gain >= tau;
    element.classList.toggle("masked", !keeps);
    active += keeps;
  }
  const kept = scored.vig >= tau;
  at("kept").textContent = kept ? "kept" : "left out";
  at("active").textContent = `${active} of ${scored.num_answer_tokens} tokens reach τ; ` +
    `the sample ${kept ? "does" : "doesn't"}`;
}

function legend() {
  const rows = [["p3", "≥ +1"], ["p2", "≥ +0.3"], ["p1", "≥ +0.1"], ["", "about 0"], ["m1", "≤ −0.1"], ["m2", "≤ −0.3"],
    ["m3", "≤ −1"]];
  for (const [name, text] of rows) {
    const element = document.createElement("span");
    element.className = name;
    element.textContent = text;
    at("legend").append(element);
  }
  at("legend").prepend("gain, nats: ");
}

async function examples() {
  const found = await (await fetch("page/examples.json")).json();
  for (const example of found) {
    const button = document.createElement("button");
    button.type = "button";
    const picture = document.createElement("img");
    picture.src = example.image;
    picture.alt = "";
    button.append(picture, example.title);
    button.addEventListener("click", () => {
      show(example.image);
      at("question").value = example.question;
      at("answer").value = example.answer;
      at("form").requestSubmit();
    });
    at("examples").append(button);
  }
}

async function model() {
  try {
    const found = await ask("v1/model");
    at("model").textContent = `Model: ${found.name}, ${found.dtype}.`;
    if (found.tau !== null) { at("taunumber").value = found.tau; at("tau").value = found.tau; }
  } catch (error) {
    fail(error.message);
  }
}

at("form").addEventListener("submit", score);
at("file").addEventListener("change", (event) => read(event.target.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") read(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) read(file);
});
for (const name of ["mouseover", "focusin"]) at("tokens").addEventListener(name, detail);
at("tau").addEventListener("input", () => { at("taunumber").value = at("tau").value; mask(); });
at("taunumber").addEventListener("input", () => { at("tau").value = at("taunumber").value; mask(); });
legend();
examples();
model();
