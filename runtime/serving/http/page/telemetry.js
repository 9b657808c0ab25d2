// Attention maps over an image, and the energies as curves.

import { field } from "./form.js";

const SVG = "http://www.w3.org/2000/svg";
const TERMS = ["attention", "norm", "total"];

export function hideTelemetry() {
  field("attention-view").hidden = true;
  field("energy-view").hidden = true;
}

// found: of /attention; address: of the first image.
export async function showAttention(found, address) {
  const { tokens, maps } = found.images[0];
  const base = new Image();
  base.src = address;
  await base.decode();
  const buttons = tokens.map((token, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = token;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      draw(base, maps[index], token);
    });
    return button;
  });
  field("tokens").replaceChildren(...buttons);
  field("attention-view").hidden = false;
  // The start token comes first, and says nothing.
  (buttons[1] ?? buttons[0]).click();
}

function draw(base, map, token) {
  const canvas = field("attention-map");
  const heat = document.createElement("canvas");
  heat.height = map.length;
  heat.width = map[0].length;
  const flat = map.flat();
  const low = Math.min(...flat);
  const range = Math.max(...flat) - low || 1;
  const pen = heat.getContext("2d");
  const pixels = pen.createImageData(heat.width, heat.height);
  flat.forEach((value, index) => {
    const share = (value - low) / range;
    pixels.data.set([255, 69 + 186 * share, 255 * share ** 3, 230 * share], index * 4);
  });
  pen.putImageData(pixels, 0, 0);
  canvas.width = Math.max(base.naturalWidth, 256);
  canvas.height = Math.round((canvas.width * base.naturalHeight) / base.naturalWidth);
  const over = canvas.getContext("2d");
  over.filter = "grayscale(1) brightness(0.6)";
  over.drawImage(base, 0, 0, canvas.width, canvas.height);
  over.filter = "none";
  over.drawImage(heat, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `Attention to ${token}`);
}

// found: of /energies.
export function showEnergies(found) {
  const count = 1 + Math.max(...found.evaluations.map((one) => one.evaluation));
  field("plots").replaceChildren(...TERMS.map((term) => plot(term, means(found, term, count))));
  field("energy-view").hidden = false;
}

// Per evaluation: over the layers, the conditional rows, and the first context, as the command line's plot.
function means(found, term, count) {
  const sums = new Array(count).fill(0);
  for (const one of found.evaluations) {
    const rows = one[term].slice(-found.images).map((contexts) => contexts[0]);
    sums[one.evaluation] += rows.reduce((sum, value) => sum + value, 0) / rows.length / found.layers.length;
  }
  return sums;
}

function element(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function plot(term, values) {
  const [left, top, width, height] = [70, 20, 420, 110];
  const low = Math.min(...values);
  const range = Math.max(...values) - low || 1;
  const points = values.map((value, index) => {
    const x = left + (width * index) / Math.max(values.length - 1, 1);
    return `${x.toFixed(1)},${(top + height * (1 - (value - low) / range)).toFixed(1)}`;
  });
  const shown = (value) => value.toPrecision(4);
  const label = `${term}: from ${shown(values[0])} to ${shown(values.at(-1))} in ${values.length} evaluations`;
  const made = element("svg", { viewBox: "0 0 510 165", role: "img", "aria-label": label });
  made.append(
    element("text", { x: left, y: 13 }, term),
    element("polyline", { class: "axis", points: `${left},${top} ${left},${top + height} ${left + width},${top + height}` }),
    element("polyline", { class: "curve", points: points.join(" ") }),
    element("text", { x: left - 5, y: top + 10, "text-anchor": "end" }, shown(low + range)),
    element("text", { x: left - 5, y: top + height, "text-anchor": "end" }, shown(low)),
    element("text", { x: left + width, y: top + height + 18, "text-anchor": "end" }, `${values.length} evaluations`),
  );
  return made;
}
