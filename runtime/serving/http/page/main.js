// The page: makes images, shows their progress, compares.

import * as api from "./api.js";
import { field, request, showModel } from "./form.js";
import { figures, refresh } from "./gallery.js";
import { Mask } from "./mask.js";
import { hideTelemetry, showAttention, showEnergies } from "./telemetry.js";

const mask = new Mask(field("mask"), field("brush"));
// The job that runs; null: none.
let current = null;

function tell(text) {
  field("status").textContent = text;
}

function complain(error) {
  const shown = field("error");
  shown.hidden = !error;
  shown.textContent = error ? error.message : "";
  if (error?.status === 401) {
    field("key-row").hidden = false;
    field("key").focus();
  }
}

function busy(on) {
  for (const id of ["make", "compare"]) field(id).disabled = on;
  field("cancel").disabled = !on;
  field("progress").hidden = !on;
  if (!on) field("preview").hidden = true;
}

function images() {
  return mask.loaded ? { image: mask.image(), mask: mask.mask() } : {};
}

// Runs a request to its end; returns the job.
async function run(body, name) {
  let ended = null;
  tell(`${name}: sent`);
  current = (await api.post("v1/generate", body)).id;
  await api.events(current, (event, data) => {
    if (event === "queued") tell(`${name}: number ${data.position} in the queue`);
    else if (event === "progress") {
      field("progress").value = data.total ? data.done / data.total : 0;
      // Each of hundreds of numbers would be read aloud.
      if (data.done === 1 || data.done % 10 === 0) tell(`${name}: ${data.done} of ${data.total}`);
    } else if (event === "preview") {
      field("preview").src = `data:image/png;base64,${data.png}`;
      field("preview").hidden = false;
    } else ended = { event, data };
  });
  if (!ended) throw new Error("the connection was lost; the job goes on, see the gallery later");
  if (ended.event !== "done") {
    const error = ended.data.error ?? ended.data;
    throw new Error([error.problem, error.remedy].filter(Boolean).join("; "));
  }
  return ended.data;
}

async function work(action) {
  complain(null);
  busy(true);
  hideTelemetry();
  for (const image of field("made").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  field("made").replaceChildren();
  try {
    await action();
    await refresh();
  } catch (error) {
    tell("Nothing was made.");
    complain(error);
  } finally {
    current = null;
    busy(false);
  }
}

async function telemetry(job, shown) {
  const address = shown[0].querySelector("img").src;
  if (job.parameters.attention_maps) await showAttention(await api.get(`v1/jobs/${job.id}/attention`), address);
  if (job.parameters.energies) showEnergies(await api.get(`v1/jobs/${job.id}/energies`));
}

async function make() {
  const job = await run(request(images()), "Image");
  const shown = await figures(job);
  field("made").replaceChildren(...shown);
  tell(`Done: ${shown.length === 1 ? "1 image" : `${shown.length} images`}`);
  await telemetry(job, shown);
}

async function compare() {
  const asked = request(images());
  const base = { ...request({ ...images(), base: true }), seed: asked.seed };
  const before = await run(base, "Base");
  const left = await figures(before, "Base");
  field("made").replaceChildren(...left);
  const job = await run(asked, "With energy-based cross attention");
  const right = await figures(job, "With energy-based cross attention");
  field("made").replaceChildren(...left.flatMap((one, index) => [one, right[index]]));
  tell(`Done: both with seed ${asked.seed}`);
  await telemetry(job, right);
}

async function cancel() {
  if (current) await api.remove(`v1/jobs/${current}`).catch(complain);
}

async function chooseImage() {
  const [file] = field("image").files;
  try {
    if (file) await mask.load(file);
    field("painting").hidden = !file;
    complain(null);
  } catch {
    field("painting").hidden = true;
    complain(new Error("the browser cannot read this image; choose a PNG, JPEG or WebP file"));
  }
}

async function start() {
  try {
    showModel(await api.get("v1/model"));
    await refresh();
  } catch (error) {
    complain(error);
  }
}

field("form").addEventListener("submit", (event) => {
  event.preventDefault();
  work(make);
});
field("compare").addEventListener("click", () => field("form").reportValidity() && work(compare));
field("cancel").addEventListener("click", cancel);
field("image").addEventListener("change", chooseImage);
field("clear-mask").addEventListener("click", () => mask.clear());
field("remove-image").addEventListener("click", () => {
  field("image").value = "";
  chooseImage();
  field("image").focus();
});
field("key").addEventListener("change", () => {
  api.setKey(field("key").value);
  complain(null);
  start();
});

start();
