// A sample's text in the URL's fragment, which browsers don't send to servers: #q=...&a=...&q=...&a=...&tau=0.1

export function toFragment(turns, tau) {
  const fields = new URLSearchParams();
  for (const { question, answer } of turns) {
    fields.append("q", question);
    fields.append("a", answer);
  }
  if (tau !== null) fields.append("tau", String(tau));
  return `#${fields}`;
}

// The turns and τ of a fragment, τ null where it has none that is a number; null where there is no text in it.
export function fromFragment(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  const questions = fields.getAll("q");
  const answers = fields.getAll("a");
  const length = Math.max(questions.length, answers.length);
  if (!length) return null;
  const turns = Array.from({ length }, (_, index) => ({
    question: questions[index] ?? "",
    answer: answers[index] ?? "",
  }));
  return { turns, tau: number(fields.get("tau")) };
}

// What a field for a number holds; null for nothing, and for what is none.
export function number(text) {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return Number.isFinite(value) ? value : null;
}
