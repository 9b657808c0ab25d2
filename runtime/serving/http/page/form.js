// Between the form and the JSON of a request.

export const field = (id) => document.getElementById(id);

const number = (id) => (field(id).value === "" ? undefined : Number(field(id).value));

export function showModel(model) {
  field("model").textContent = `${model.model}, ${model.device}, ${model.backend}`;
  for (const id of ["width", "height"]) {
    field(id).placeholder = model[id];
    field(id).step = model.multiple;
    field(id).min = model.multiple;
  }
  field("steps").placeholder = model.steps;
  field("guidance").placeholder = model.guidance_scale;
  field("two-encoders").hidden = !model.second_prompt;
  const names = ["", ...model.schedulers];
  field("scheduler").replaceChildren(
    ...names.map((name) => new Option(name || `the model's own (${model.scheduler})`, name)),
  );
}

// "circle=2, square=1.5" -> [["circle", 2], ["square", 1.5]]
function tokenWeights() {
  const parts = field("words").value.split(",").map((part) => part.trim()).filter(Boolean);
  return parts.map((part) => {
    const [word, factor] = part.split("=").map((one) => one.trim());
    if (!word || factor === undefined || factor === "" || Number.isNaN(Number(factor))) {
      throw new Error(`"${part}" among the words cannot be read; write word=2`);
    }
    return [word, Number(factor)];
  });
}

// [height, width] or [top, left]; undefined if both fields are empty.
function pair(first, second) {
  const [a, b] = [number(first), number(second)];
  if (a === undefined && b === undefined) return undefined;
  const name = (id) => field(id).labels[0].textContent;
  if (a === undefined || b === undefined) throw new Error(`${name(first)} and ${name(second)} belong together`);
  return [a, b];
}

function secondEncoder() {
  return {
    prompt_2: field("prompt-2").value || undefined,
    negative_prompt_2: field("negative-2").value || undefined,
    original_size: pair("original-height", "original-width"),
    crops_coords_top_left: pair("crop-top", "crop-left"),
  };
}

// The request; without EBCA's part for the base of a comparison.
export function request({ base = false, image = null, mask = null } = {}) {
  const gamma = (id) => {
    const value = Number(field(id).value || 0);
    const tau = Number(field("tau").value || 1);
    return tau < 1 ? { schedule: "reverse_step", value, parameter: tau } : value;
  };
  const made = {
    prompt: field("prompt").value,
    negative_prompt: field("negative").value || undefined,
    steps: number("steps"),
    guidance_scale: number("guidance"),
    scheduler: field("scheduler").value || undefined,
    width: number("width"),
    height: number("height"),
    num_images: number("count"),
    previews: 2,
    attention_maps: field("attention").checked,
    energies: field("energies").checked,
    vae_tiling: field("tiling").checked,
    ...(field("two-encoders").hidden ? {} : secondEncoder()),
    // Beyond 2^32 nobody needs one; the service takes whole numbers.
    seed: field("seed").value === "" ? Math.floor(Math.random() * 2 ** 32) : Number(field("seed").value),
  };
  if (image) {
    made.image = image;
    if (mask) made.mask = mask;
    else made.strength = number("strength");
  }
  if (!base) {
    made.gamma_attn = gamma("gamma-attn");
    made.gamma_norm = gamma("gamma-norm");
    made.token_weights = tokenWeights();
    if (field("subjects").checked) made.subjects = "auto";
  }
  return made;
}

// Fills the form with the parameters of a job. What was given as an image is not recorded.
export function fill(parameters) {
  const text = (value) => (Array.isArray(value) ? value[0] : value) ?? "";
  field("prompt").value = text(parameters.prompt);
  field("negative").value = text(parameters.negative_prompt);
  field("seed").value = text(parameters.seed);
  field("steps").value = parameters.steps;
  field("guidance").value = parameters.guidance_scale;
  field("width").value = parameters.width;
  field("height").value = parameters.height;
  field("count").value = parameters.num_images;
  field("scheduler").value = parameters.scheduler === "RePaint" ? "" : parameters.scheduler;
  for (const [id, gamma] of [["gamma-attn", parameters.gamma_attn], ["gamma-norm", parameters.gamma_norm]]) {
    field(id).value = typeof gamma === "number" ? gamma : gamma?.value ?? 0;
    if (gamma?.schedule === "reverse_step") field("tau").value = gamma.parameter;
  }
  field("words").value = (parameters.token_weights ?? []).map(([word, factor]) => `${word}=${factor}`).join(", ");
  field("subjects").checked = Boolean(parameters.subjects);
  field("tiling").checked = Boolean(parameters.vae_tiling);
  field("prompt-2").value = text(parameters.prompt_2);
  field("negative-2").value = text(parameters.negative_prompt_2);
  const pairs = [["original-height", "original-width", "original_size"], ["crop-top", "crop-left", "crops_coords_top_left"]];
  for (const [first, second, name] of pairs) {
    [field(first).value, field(second).value] = parameters[name] ?? ["", ""];
  }
  field("prompt").focus();
}
