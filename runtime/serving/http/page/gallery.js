// Images with their parameters: what was just made, and what was made before.

import * as api from "./api.js";
import { field, fill } from "./form.js";

const SHOWN = 24;
let addresses = [];

const title = (job) => [job.parameters.prompt].flat().join(" / ");

function caption(job, text) {
  const made = document.createElement("figcaption");
  const { seed, steps, gamma_attn: attn, gamma_norm: norm } = job.parameters;
  const gamma = (value) => (typeof value === "number" ? value : value.value ?? "values");
  made.textContent = text ?? `seed ${[seed].flat().join(", ")}, ${steps} steps, gammas ${gamma(attn)} and ${gamma(norm)}`;
  return made;
}

async function imageFrom(path, alt) {
  const image = document.createElement("img");
  image.alt = alt;
  image.src = await api.blob(path);
  return image;
}

// Figures of a job's images. text: what they are called instead of their parameters.
export async function figures(job, text) {
  return Promise.all(
    job.images.map(async (path, index) => {
      const figure = document.createElement("figure");
      const image = await imageFrom(path.slice(1), `${text ? `${text}: ` : ""}${title(job)}`);
      const link = document.createElement("a");
      link.href = image.src;
      link.download = `${job.id.slice(0, 8)}-${index}.png`;
      link.textContent = "Save";
      const named = caption(job, text);
      named.append(" ", link);
      figure.append(image, named);
      return figure;
    }),
  );
}

function button(text, label, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

async function entry(job) {
  const item = document.createElement("li");
  const image = await imageFrom(job.images[0].slice(1), title(job));
  addresses.push(image.src);
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const text = document.createElement("pre");
  summary.textContent = "Parameters";
  text.textContent = JSON.stringify(job.parameters, null, 1);
  details.append(summary, text);
  const name = document.createElement("p");
  name.textContent = title(job);
  const again = async () => {
    await api.remove(`v1/jobs/${job.id}?purge=true`);
    await refresh();
    field("results").focus();
  };
  item.append(
    image,
    name,
    caption(job),
    button("Use", `Use the parameters of ${title(job)}`, () => fill(job.parameters)),
    " ",
    button("Delete", `Delete ${title(job)}`, again),
    details,
  );
  return item;
}

export async function refresh() {
  const { jobs } = await api.get(`v1/jobs?limit=${SHOWN}`);
  const before = addresses;
  addresses = [];
  field("gallery").replaceChildren(...(await Promise.all(jobs.filter((job) => job.images.length).map(entry))));
  before.forEach((address) => URL.revokeObjectURL(address));
}
