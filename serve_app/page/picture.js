// A result as a PNG, twice as fine as on the screen, in the colours that the page has at the moment.

import { pieces } from "./tokens.js";
import { LEGEND, plural, signed, step } from "./words.js";

const SCALE = 2;
const WIDTH = 760; // CSS pixels, as all lengths here
const MARGIN = 24;
const SIZES = { head: 26, text: 15, token: 19, legend: 14 };
const FAMILY = "system-ui, sans-serif";

// A Blob; null where the picture would be larger than the browser makes one.
export function picture({ score, who, answers, questions }, tau) {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const lines = layOut(context, rows({ score, who, answers, questions }, tau));
  canvas.width = WIDTH * SCALE;
  canvas.height = (lines.reduce((sum, line) => sum + line.height, 0) + 2 * MARGIN) * SCALE;
  context.scale(SCALE, SCALE);
  context.fillStyle = colour("--ground");
  context.fillRect(0, 0, WIDTH, canvas.height);
  let y = MARGIN;
  for (const line of lines) {
    for (const run of line.runs) draw(context, run, y, line);
    y += line.height;
  }
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

// Paragraphs of runs {text, size, ink, fill, line, wave}; colours are names of custom properties.
function rows({ score, who, answers, questions }, tau) {
  const kept = tau === null ? "" : `, ${score.vig >= tau ? "kept" : "left out"} at τ = ${tau}`;
  const found = [
    [{ text: signed(score.vig), size: SIZES.head, bold: true }, { text: ` nats of sample gain${kept}` }],
    [{ text: `${who}; loss ${score.clean_loss.toFixed(3)} with the image, ${score.reference_loss.toFixed(3)} ` +
      `without; ${plural(score.num_answer_tokens, "token")}`, ink: "--soft" }],
    [],
  ];
  pieces(score.tokens, answers).forEach((answer, turn) => {
    found.push([{ text: questions[turn], ink: "--soft" }], answer.map((piece) => tokenRun(piece, tau)), []);
  });
  const size = SIZES.legend;
  const steps = LEGEND.flatMap(([name, text]) => [
    { text: "  ", size }, { text: ` ${text} `.replaceAll(" ", "\u00a0"), size, ...look(name) },
  ]);
  found.push([{ text: "gain, nats:", size }, ...steps]);
  return found;
}

function tokenRun({ text: bare, token, special }, tau) {
  const text = special ? `\u00a0${bare}\u00a0` : bare;
  const size = special ? SIZES.legend : SIZES.token;
  if (!token) return { text, size };
  const masked = tau !== null && token.gain < tau;
  const name = step(token.gain);
  return { text, size, ...(masked ? { ink: "--soft", line: name && `--${name}` } : look(name)) };
}

function look(name) {
  return name ? { ink: `--${name}t`, fill: `--${name}`, wave: name.startsWith("m") } : {};
}

// Lines of runs with their x and width; a word is broken only where it is longer than a line.
function layOut(context, paragraphs) {
  return paragraphs.flatMap((runs) => {
    const lines = [newLine()];
    for (const word of words(runs)) {
      const width = word.reduce((sum, run) => sum + measure(context, run), 0);
      if (lines.at(-1).x + width > WIDTH - MARGIN && lines.at(-1).runs.length) {
        lines.push(newLine());
        if (/^[ \t]/.test(word[0].text)) continue;
      }
      for (const run of word) {
        if (run.text === "\n") lines.push(newLine());
        else for (const part of broken(context, run)) place(context, part, lines);
      }
    }
    return lines;
  });
}

const newLine = () => ({ runs: [], x: MARGIN, height: SIZES.text * 1.6, size: SIZES.text });

function place(context, run, lines) {
  const width = Math.ceil(measure(context, run) * SCALE) / SCALE; // whole pixels, so that no seam shows between fills
  if (lines.at(-1).x + width > WIDTH - MARGIN && lines.at(-1).runs.length) lines.push(newLine());
  const line = lines.at(-1);
  line.runs.push({ ...run, x: line.x, width });
  line.x += width;
  line.size = Math.max(line.size, run.size ?? SIZES.text);
  line.height = Math.max(line.height, line.size * 1.6);
}

// Runs cut at spaces and line ends, and joined to words: a word may be of several tokens.
function words(runs) {
  const found = [];
  let open = false;
  for (const run of runs) {
    for (const text of run.text.match(/\n|[ \t]+|[^ \t\n]+/g) ?? []) {
      const part = { ...run, text };
      if (/^[ \t\n]/.test(text)) open = false;
      if (open) found.at(-1).push(part);
      else found.push([part]);
      open = !/^[ \t\n]/.test(text);
    }
  }
  return found;
}

function broken(context, run) {
  if (measure(context, run) <= WIDTH - 2 * MARGIN) return [run];
  return [...run.text].map((text) => ({ ...run, text }));
}

function measure(context, run) {
  context.font = `${run.bold ? "bold " : ""}${run.size ?? SIZES.text}px ${FAMILY}`;
  return context.measureText(run.text).width;
}

function draw(context, run, y, line) {
  const base = y + line.height * 0.5 + line.size * 0.36;
  const size = run.size ?? SIZES.text;
  if (run.fill) {
    context.fillStyle = colour(run.fill);
    context.fillRect(run.x, base - size, run.width, size * 1.35);
  }
  if (run.line) {
    context.fillStyle = colour(run.line);
    context.fillRect(run.x, base + size * 0.2, run.width, 3);
  }
  context.fillStyle = context.strokeStyle = colour(run.ink ?? "--text");
  measure(context, run); // sets the font
  context.fillText(run.text, run.x, base);
  if (run.wave) wave(context, run.x, run.x + run.width, base + size * 0.2);
}

// Loss is told apart by its line, too, not by colour alone.
function wave(context, from, to, y) {
  context.beginPath();
  for (let x = from; x <= to; x += 0.5) context.lineTo(x, y + Math.sin((x - from) * 1.3));
  context.stroke();
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
