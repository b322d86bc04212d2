"use strict";
// The page is whole without this: it adds tooltips, the gallery's filters, and a button that saves the numbers.
const at = (id) => document.getElementById(id);

const tip = at("tip");
const parts = ["axis", "legend", "title"].map((name) => `:not([aria-roledescription="${name}"])`).join("");
const marks = `[aria-roledescription][aria-label]${parts}, .token[title], .token[data-say]`;
function point(event) {
  const mark = event.target.closest(marks);
  tip.hidden = !mark;
  if (!mark) return;
  if (mark.title) { mark.dataset.say = mark.title; mark.removeAttribute("title"); }
  tip.textContent = mark.dataset.say || mark.getAttribute("aria-label");
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 18 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? event.clientY + 18 : event.clientY - tip.offsetHeight - 12}px`;
}
for (const name of ["pointermove", "pointerdown"]) document.addEventListener(name, point);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

function filter() {
  const source = at("source").value, group = at("group").value;
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  document.documentElement.classList.toggle("filtered", source !== "" || words.length > 0);
  const found = new Set();
  for (const section of document.querySelectorAll("#gallery section")) {
    const wanted = group === "" || section.id === group;
    let shown = 0;
    for (const card of section.querySelectorAll(".card")) {
      const fits = (source === "" || card.dataset.source === source) &&
        words.every((word) => (card.text ??= card.dataset.key.toLowerCase() + " " +
          [...card.querySelectorAll(".turn")].map((turn) => turn.textContent).join(" ").toLowerCase()).includes(word));
      card.hidden = !fits;
      const more = card.classList.contains("more") && source === "" && words.length === 0;
      shown += fits && !more;
      if (fits && !more && wanted) found.add(card.dataset.key);
    }
    section.hidden = !wanted || shown === 0;
  }
  at("found").textContent = found.size === 1 ? "1 sample" : `${found.size} samples`;
}
document.documentElement.classList.add("live");
if (at("source")) {
  for (const id of ["source", "group", "search"]) at(id).addEventListener("input", filter);
  filter();
}

at("save").hidden = false;
at("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([at("numbers").textContent], { type: "application/json" }));
  link.download = `${document.title.replace(/[^\w.-]+/g, "-")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
});
