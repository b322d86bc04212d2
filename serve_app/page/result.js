// What was answered: a panel for each score, beside each other where two are compared, and one τ for both.

import { at, copy, fail, make, save } from "./dom.js";
import { number } from "./link.js";
import { picture } from "./picture.js";
import { tableRows, tokenLists } from "./tokens.js";
import { LEGEND, plural, signed, tokenWords } from "./words.js";

let shown = []; // {score, text, who, answers, images, panel}

export const tau = () => number(at("taunumber").value);

export function setTau(value) {
  at("taunumber").value = at("tau").value = value;
}

// `results`: {score, text, who}, where `text` is what the server answered; `sent`: {answers, images}.
export function show(results, sent) {
  shown = results.map((result) => ({ ...result, ...sent, panel: copy("panel"), evidence: copy("evidence") }));
  shown.forEach(fill);
  at("panels").replaceChildren(...shown.map(({ panel }) => panel));
  at("evidences").replaceChildren(...shown.map(({ evidence }) => evidence));
  document.body.classList.toggle("compared", shown.length > 1);
  at("result").hidden = false;
  mask();
}

// What a screen reader is told.
export function summary() {
  const name = (who) => (shown.length > 1 ? who : "Scored");
  return shown.map(({ score, who }) => `${name(who)}: ${signed(score.vig)} nats of sample gain.`).join(" ");
}

function fill(result, place) {
  const { score, who, answers, panel, evidence } = result;
  panel.querySelector(".who").textContent = evidence.querySelector(".who").textContent = who;
  panel.querySelector(".gain").textContent = signed(score.vig);
  panel.querySelector(".losses").textContent = `loss ${score.clean_loss.toFixed(3)} with the image, ` +
    `${score.reference_loss.toFixed(3)} without; ${plural(score.num_answer_tokens, "token")}`;
  const of = shown.length > 1 ? `, ${who}` : "";
  panel.querySelector(".answers").append(...tokenLists(score, answers, of));
  for (const name of ["mouseover", "focusin"]) panel.addEventListener(name, (event) => detail(result, event));
  evidence.querySelector("tbody").append(...tableRows(score));
  evidence.querySelector(".scroll").setAttribute("aria-label", `Tokens as a table${of}`);
  const suffix = shown.length > 1 ? `-${place + 1}` : "";
  const [json, png] = evidence.querySelectorAll(".downloads button");
  for (const button of [json, png]) button.setAttribute("aria-label", button.textContent + of);
  json.addEventListener("click", () => save(`vig${suffix}.json`, new Blob([result.text], { type: "application/json" })));
  png.addEventListener("click", () => savePicture(result, `vig${suffix}.png`));
  evidence.querySelector(".pair").append(...figures(result));
}

async function savePicture(result, name) {
  const blob = await picture(result, tau());
  if (blob) save(name, blob);
  else fail("This answer is too long for a picture; the tokens can be had as JSON.");
}

function figures({ score, images }) {
  const blurred = score.reference_images ?? [];
  const { name, kernels } = score.reference;
  return images.flatMap((image, index) => {
    const which = images.length > 1 ? `image ${index + 1}` : "the image";
    const found = [figure(image.uri, `${which}, as it was sent`, images.length > 1 ? which : "with the image")];
    const stand = blurred[index];
    const kernel = kernels[index] === undefined ? "" : `, kernel ${kernels[index]}`;
    const words = name === "blur" ? `blurred${kernel}` : name;
    found.push(stand ? figure(stand, `${which}, ${words}`, `without: ${words}`)
      : make("figure", {}, make("figcaption", { text: `without: the reference “${name}”, which shows no picture` })));
    return found;
  });
}

function figure(src, alt, caption) {
  return make("figure", {}, make("img", { src, alt }), make("figcaption", { text: caption }));
}

function detail({ score, panel }, event) {
  const element = event.target.closest(".token");
  if (!element) return;
  panel.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
  element.setAttribute("aria-selected", "true");
  panel.querySelector(".detail").textContent = tokenWords(score.tokens[element.dataset.index]);
}

// Masks what is below τ; nothing where the field holds no number.
function mask() {
  const least = tau();
  for (const { score, panel } of shown) {
    for (const element of panel.querySelectorAll(".token")) {
      element.classList.toggle("masked", least !== null && score.tokens[element.dataset.index].gain < least);
    }
    const kept = score.vig >= least;
    const active = score.tokens.filter((token) => token.gain >= least).length;
    panel.querySelector(".badge").textContent = least === null ? "no τ" : kept ? "kept" : "left out";
    panel.querySelector(".active").textContent = least === null ? "τ is empty: nothing is masked"
      : `${active} of ${plural(score.num_answer_tokens, "token")} ${active === 1 ? "reaches" : "reach"} τ; ` +
        `the sample ${kept ? "does" : "doesn't"}`;
  }
}

export function listenForTau() {
  at("tau").addEventListener("input", () => { at("taunumber").value = at("tau").value; mask(); });
  at("taunumber").addEventListener("input", () => { at("tau").value = at("taunumber").value; mask(); });
  at("legend").append("gain, nats: ", ...LEGEND.map(([className, text]) => make("span", { className, text })));
}
