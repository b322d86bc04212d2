// Numbers as a person reads them, and the steps of colour.

// The steps of the legend: least |gain| in nats, the number of the class.
const STEPS = [[1, "3"], [0.3, "2"], [0.1, "1"]];
export const LEGEND = [["p3", "≥ +1"], ["p2", "≥ +0.3"], ["p1", "≥ +0.1"], ["", "about 0"], ["m1", "≤ −0.1"],
  ["m2", "≤ −0.3"], ["m3", "≤ −1"]];

export const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(3);

export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share >= 10 ? `${share.toFixed(0)} %` : share >= 0.01 ? `${share.toPrecision(2)} %` : "under 0.01 %";
}

// The class of a gain: p1 to p3, m1 to m3, none for about 0.
export function step(gain) {
  const found = STEPS.find(([least]) => Math.abs(gain) >= least);
  return found ? (gain > 0 ? "p" : "m") + found[1] : "";
}

export function tokenWords(token) {
  return `“${token.text}”: gain ${signed(token.gain)} nats; log-prob ${token.clean_logprob.toFixed(3)} with the image ` +
    `(${percent(token.clean_logprob)}), ${token.reference_logprob.toFixed(3)} without ` +
    `(${percent(token.reference_logprob)})`;
}

export const plural = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
