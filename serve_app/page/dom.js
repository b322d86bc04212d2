// Elements by id, new ones, and what is told to people. Text is only ever set as text, never read as HTML.

export const at = (id) => document.getElementById(id);

export function make(tag, { text, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

// The first element of a template of index.html.
export const copy = (id) => at(id).content.firstElementChild.cloneNode(true);

// Errors interrupt a screen reader; what was done doesn't.
export function fail(words) {
  at("error").textContent = words;
  if (words) at("status").textContent = "";
}

export function tell(words) {
  at("error").textContent = "";
  at("status").textContent = words;
}

export function save(name, blob) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
