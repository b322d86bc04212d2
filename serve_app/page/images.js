// The form's images, in the order of their marks, and the ways by which they come: chosen, dropped, pasted.

import { at, copy, fail, make, tell } from "./dom.js";
import * as marks from "./marks.js";
import { questions, setQuestions } from "./turns.js";
import { plural } from "./words.js";

let list = []; // {uri, name}; uri is a data URI

export const images = () => list;

export function setImages(images) {
  list = images;
  draw();
}

async function addFiles(files) {
  const wrong = files.filter((file) => !file.type.startsWith("image/"));
  const read = await Promise.allSettled(files.filter((file) => !wrong.includes(file)).map(readFile));
  const good = read.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  good.forEach(add);
  draw();
  if (wrong.length) fail(`Not an image: ${wrong.map((file) => file.name).join(", ")}.`);
  else if (good.length < read.length) fail("A file can't be read. Was it moved or deleted?");
  else if (good.length) tell(`${plural(good.length, "image")} added, ${list.length} in all.`);
}

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ uri: reader.result, name: file.name });
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// A mark that waits for its image is filled first; without any marks all images are at the start.
function add(image) {
  const count = marks.count(questions());
  if (count === 0 || count > list.length) {
    list = [...list, image];
    return;
  }
  const inserted = marks.insert(questions(), 0);
  setQuestions(inserted.questions);
  list = list.toSpliced(inserted.at, 0, image);
}

function removeImage(index) {
  setQuestions(marks.remove(questions(), index));
  list = list.toSpliced(index, 1);
  draw();
  tell(`Image ${index + 1} is removed, ${list.length} left.`);
  (control(Math.min(index, list.length - 1), ".remove") ?? at("file")).focus();
}

function moveToQuestion(index, question) {
  const settled = marks.remove(marks.settle(questions(), list.length), index);
  const inserted = marks.insert(settled, question);
  setQuestions(inserted.questions);
  list = marks.shift(list, index, inserted.at);
  draw();
  tell(`Image ${index + 1} is at the start of question ${question + 1}; it is image ${inserted.at + 1} now.`);
  const select = control(inserted.at, ".place");
  (select.hidden ? control(inserted.at, ".remove") : select).focus();
}

function moveBy(index, by) {
  list = marks.shift(list, index, index + by);
  draw();
  tell(`Image ${index + 1} is image ${index + by + 1} now.`);
  const name = by < 0 ? ".earlier" : ".later";
  const button = control(index + by, name);
  (button.disabled ? control(index + by, by < 0 ? ".later" : ".earlier") : button).focus();
}

// Before a turn is removed: the questions without it, its images at the start of the first that stays.
export function questionsWithout(index) {
  const { questions: rest, order } = marks.withoutQuestion(questions(), index, list.length);
  list = order.map((number) => list[number]);
  return rest;
}

const control = (index, name) => at("images").children[index]?.querySelector(name);

let drawn = ""; // where images stood when they were last drawn

const standing = (texts) => JSON.stringify([texts.length, marks.places(texts)]);

// After a change of the questions, whose text says where images stand; most letters change nothing.
export function drawMoved() {
  if (standing(questions()) !== drawn) draw();
}

function draw() {
  const texts = questions();
  drawn = standing(texts);
  const places = marks.places(marks.settle(texts, list.length));
  at("images").replaceChildren(...list.map((image, index) => item(image, index, texts, places[index])));
  const count = marks.count(texts);
  const fits = count === 0 || count === list.length;
  at("marks").textContent = fits ? "" : `The questions have room for ${plural(count, "image")} (<image>), and ` +
    `${list.length} ${list.length === 1 ? "is" : "are"} here.`;
}

function item(image, index, texts, place) {
  const element = copy("image");
  const number = index + 1;
  Object.assign(element.querySelector("img"), { src: image.uri, alt: `Image ${number}` });
  element.querySelector(".name").textContent = `Image ${number}: ${image.name}`;
  const select = element.querySelector(".place");
  select.hidden = texts.length === 1 && place !== undefined;
  select.setAttribute("aria-label", `Where image ${number} stands`);
  if (place === undefined) select.append(make("option", { text: "nowhere", value: "" }));
  texts.forEach((_, question) => select.append(make("option", { text: `in question ${question + 1}`, value: question })));
  select.value = place ?? "";
  select.addEventListener("change", () => moveToQuestion(index, Number(select.value)));
  const buttons = [
    [".earlier", `Move image ${number} forward`, () => moveBy(index, -1), index > 0],
    [".later", `Move image ${number} back`, () => moveBy(index, 1), index < list.length - 1],
    [".remove", `Remove image ${number}`, () => removeImage(index), true],
  ];
  for (const [name, words, act, possible] of buttons) {
    const button = element.querySelector(name);
    button.setAttribute("aria-label", words);
    button.title = words;
    button.disabled = !possible;
    if (name !== ".remove") button.hidden = list.length === 1;
    button.addEventListener("click", act);
  }
  return element;
}

export function listenForFiles() {
  at("file").addEventListener("change", async () => {
    await addFiles([...at("file").files]);
    at("file").value = ""; // so that the same file can be chosen again
  });
  // Anywhere: beside the field, a browser would leave the page for the file.
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      at("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") addFiles([...event.dataTransfer.files]);
    });
  }
  document.addEventListener("paste", (event) => {
    const found = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    // Word processors copy a picture of the text beside it: in a field for text the text is meant.
    const text = event.target.matches?.("textarea, input") && event.clipboardData.types.includes("text/plain");
    if (!found.length || text) return;
    event.preventDefault();
    addFiles(found);
  });
}
