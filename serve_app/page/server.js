// Asking the server, and what it refuses in words.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// The answer as an object and as the text that came. Raises Refused, whose message is for the person.
export async function ask(path, { body, key } = {}) {
  const options = { headers: {} };
  if (key) options.headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    options.headers["Content-Type"] = "application/json";
  }
  let answer, text;
  try {
    answer = await fetch(path, options);
    text = await answer.text();
  } catch {
    throw new Refused("The server can't be reached. Is it still running?");
  }
  const found = parsed(text);
  if (!answer.ok) throw new Refused(words(answer, found?.error?.message, key), answer.status);
  if (found === undefined) throw new Refused("What answered isn't this server: its answer is no JSON.", answer.status);
  return { found, text };
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return undefined; }
}

function words(answer, message, key) {
  const told = message ? `: ${message}` : "";
  switch (answer.status) {
    case 401:
      return key ? "The server doesn't know this key. Check the field Key." : "This server wants a key: fill in the field Key.";
    case 413:
    case 422:
      return `The sample was refused${told || ` (${answer.status})`}.`;
    case 503:
      return `The server is busy${told}. ${later(answer.headers.get("Retry-After"))}`;
    case 504:
      return `The server took too long${told}.`;
    default:
      return `The server answered ${answer.status}${told}.`;
  }
}

// Retry-After is a number of seconds or a date.
function later(after) {
  if (!after) return "Try again in a while.";
  return /^\d+$/.test(after) ? `Try again in ${after === "1" ? "a second" : `${after} seconds`}.` : `Try again after ${after}.`;
}
