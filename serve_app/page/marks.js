// Where images stand: `<image>` in the questions, the n-th for the n-th image. Questions without any have all images at
// the start of the first, as the server has it, too. Every function takes and gives the questions as a list of strings.

const MARK = "<image>";
const LEADING = /^(?:<image>\n?)*/;

export const count = (questions) => places(questions).length;

// The question that each mark is in.
export function places(questions) {
  return questions.flatMap((question, index) => Array(question.split(MARK).length - 1).fill(index));
}

// With marks of `images` images where there are none yet: what is sent.
export function settle(questions, images) {
  if (count(questions) || !questions.length) return questions;
  return [`${MARK}\n`.repeat(images) + questions[0], ...questions.slice(1)];
}

// A mark at the start of question `index`, after those that are there; `at`: which mark it is now.
export function insert(questions, index) {
  const leading = questions[index].match(LEADING)[0];
  const separator = leading && !leading.endsWith("\n") ? "\n" : "";
  const text = `${leading}${separator}${MARK}\n${questions[index].slice(leading.length)}`;
  return { questions: questions.with(index, text), at: count(questions.slice(0, index)) + count([leading]) };
}

// Without the n-th mark and the line end after it.
export function remove(questions, n) {
  const index = places(questions)[n];
  if (index === undefined) return questions;
  let left = n - count(questions.slice(0, index));
  return questions.with(index, questions[index].replaceAll(/<image>\n?/g, (mark) => (left-- === 0 ? "" : mark)));
}

// Without question `index`; its marks go to the start of the first that stays. `order`: the images' numbers in theirs.
export function withoutQuestion(questions, index, images) {
  let order = Array.from({ length: images }, (_, number) => number);
  const target = index === 0 ? 1 : 0;
  for (let n; (n = places(questions).indexOf(index)) >= 0; ) {
    const moved = insert(remove(questions, n), target);
    questions = moved.questions;
    order = shift(order, n, moved.at);
  }
  return { questions: questions.toSpliced(index, 1), order };
}

// `list` with the entry at `from` at `to`; an entry that isn't there (a mark without its image) changes nothing.
export function shift(list, from, to) {
  return from < list.length ? list.toSpliced(from, 1).toSpliced(to, 0, list[from]) : list;
}
