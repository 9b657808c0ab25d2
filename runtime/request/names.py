"""Names of parameters: what those of other programs are called here, and which one a misspelled name may mean."""

import difflib
from collections.abc import Iterable, Mapping

from ebca.errors import UnknownParameterError

# Names of diffusers, of other programs, and of the authors' scripts.
_CALLED = {
    "steps": ("num_inference_steps", "num_steps", "inference_steps", "sampling_steps", "ddim_steps"),
    "guidance_scale": ("guidance", "cfg", "cfg_scale", "scale", "unconditional_guidance_scale"),
    "negative_prompt": ("negative", "neg_prompt", "uncond_prompt"),
    "scheduler": ("sampler", "sampler_name"),
    "on_step": ("callback", "callback_on_step_end", "progress_callback"),
    "image": ("images", "init_image", "input_image", "img", "img_file"),
    "mask": ("mask_image", "masks", "mask_file"),
    "strength": ("denoising_strength",),
    "prompt_embeds": ("prompt_embeddings", "encoder_hidden_states"),
    "attention_maps": ("output_attentions",),
    "control": ("control_image", "controlnet_image", "controlnet"),
}
_REPLACED = {
    "generator": "is called `seed` here, which is a number",
    "output_type": "is called `output` here: 'pil', 'np' or 'latents'",
    "return_dict": "is not needed here: a call always returns a Result",
    "callback_steps": "is not needed here: `on_step` is called after every evaluation",
    "callback_on_step_end_tensor_inputs": "is not needed here: `on_step` gets latents and contexts",
    **{
        name: f"is a part of `repaint` here: repaint=ebca.RePaint({field}=...)"
        for name, field in (
            *(("eta", "eta"), ("jump_length", "jump_length"), ("jump_n_sample", "jump_count")),
            *(("jump_count", "jump_count"), ("update_known", "update_known")),
        )
    },
    **dict.fromkeys(
        ("gamma_tau", "gamma_schedule", "gamma_ratio"),
        "is a part of the gammas here: gamma_attn=ebca.Schedule.reverse_step(0.01, tau=0.5)",
    ),
    **dict.fromkeys(("token_words", "token_upweight"), "is called `token_weights` here: {'crown': 2.5, 5: 0.5}"),
    # The authors weight tokens with it; in Attend-and-Excite it names subjects.
    "token_indices": "is called `token_weights` here: {'crown': 2.5, 5: 0.5}; "
    "to give each thing its place: subjects=['lion', 'crown']",
    **dict.fromkeys(
        ("indices_to_alter", "subject_words", "phrases", "gligen_phrases", "noun_phrases"),
        "is called `subjects` here: ['red circle', 'blue square'], or 'auto'",
    ),
    **dict.fromkeys(
        ("boxes", "gligen_boxes", "bboxes", "bbox", "region_masks", "regional_prompts"),
        "is a part of `regions` here: {'red circle': (left, top, right, bottom), 'blue square': 'mask.png'}",
    ),
    **dict.fromkeys(
        ("editing_prompt", "editing_direction", "alpha", "alpha_tau", "gamma_attn_compose", "gamma_norm_compose"),
        "is a part of `edits` here: edits=[ebca.Edit('a boat', direction=1, alpha=1.3)]",
    ),
    **dict.fromkeys(
        ("lora", "loras", "lora_scale", "cross_attention_kwargs", "adapter_names", "embedding"),
        "belongs to the engine, whose weights it changes: Engine.with_lora(['style.safetensors:0.8'])",
    ),
    "source_prompt": "is the prompt of `Session.invert` here, whose latents `generate` takes",
    **dict.fromkeys(
        ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"),
        "is a part of `control` here: control=[ebca.Control('edges.png', scale=1.0, start=0.0, end=1.0)]",
    ),
    **dict.fromkeys(("aesthetic_score", "negative_aesthetic_score"), "belongs to the refiner, which is not supported"),
    **dict.fromkeys(("tiling", "enable_vae_tiling", "use_tiling"), "is called `vae_tiling` here"),
    "prompt_3": "belongs to Stable Diffusion 3, which is not supported",
    **dict.fromkeys(
        ("guidance_rescale", "ip_adapter_image", "sigmas", "timesteps"),
        "has no counterpart here",
    ),
}
_COUNT = ("num_images_per_prompt", "num_images", "num_samples", "n_samples", "batch_size", "batch", "n")
_SIZE = ("height", "width", "size", "resolution", "image_size")

FIELDS: Mapping[str, str] = {
    **{name: f"is called `{ours}` here" for ours, names in _CALLED.items() for name in names},
    **_REPLACED,
    **dict.fromkeys(_COUNT, "belongs to the session: Engine.session(batch=4), or Engine.generate(num_images=4)"),
    **dict.fromkeys(
        _SIZE, "belongs to the session: Engine.session(height, width), or Engine.generate(height=..., width=...)"
    ),
}
"""For fields of a request, and for `Session.generate`."""

INVERT_FIELDS: Mapping[str, str] = {
    **FIELDS,
    **dict.fromkeys(
        ("subjects", "regions", "subject_exclusion", "subject_balance", "subject_window"),
        "has no place in an inversion, which follows the image",
    ),
    **dict.fromkeys(
        ("negative_prompt_2", "negative_pooled_prompt_embeds", "negative_original_size", "negative_target_size"),
        "has no place in an inversion, which has no guidance",
    ),
}
"""For `Session.invert`."""

ENGINE_FIELDS: Mapping[str, str] = {
    **FIELDS,
    "num_images_per_prompt": "is called `num_images` here, and counts the images of all prompts together",
    **dict.fromkeys(_COUNT[2:], "is called `num_images` here"),
    **dict.fromkeys(_SIZE[2:], "is two parameters here: `height` and `width`"),
}
"""For `Engine.generate`."""

SESSION: Mapping[str, str] = {
    **dict.fromkeys(_COUNT, "is called `batch` here"),
    **dict.fromkeys(_SIZE[2:], "is two parameters here: `height` and `width`"),
}
"""For `Engine.session`."""

LOAD: Mapping[str, str] = {
    **dict.fromkeys(("device_map", "device_id"), "is called `device` here: 'auto', 'cpu', 'cuda', 'cuda:1'"),
    **dict.fromkeys(
        ("torch_dtype", "dtype", "variant", "revision"),
        "is chosen when an engine directory is exported; on the CPU, `precision` may also be 'bf16'",
    ),
    **dict.fromkeys(("provider", "providers", "execution_provider"), "is called `backend` here"),
    **dict.fromkeys(("loras", "lora_weights", "adapters"), "is called `lora` here: ['style.safetensors:0.8']"),
    **dict.fromkeys(("embeddings", "textual_inversion"), "is called `embedding` here: ['cat.safetensors=<my-cat>']"),
    **dict.fromkeys(("num_threads", "intra_op_num_threads"), "is called `threads` here"),
    **dict.fromkeys(
        ("model", "model_id", "model_path", "path", "pretrained_model_name_or_path"),
        "is called `engine` here: a directory that ebca-export made",
    ),
    **dict.fromkeys(
        ("safety_checker", "requires_safety_checker", "feature_extractor", "use_safetensors", "cache_dir"),
        "has no counterpart here",
    ),
}
"""For `ebca.load`."""


def unknown(
    names: Iterable[str], owner: str, known: Iterable[str], elsewhere: Mapping[str, str]
) -> UnknownParameterError:
    """The error for names that a call does not know: each with what it is called here, or with the closest match.

    Args:
        names: the unknown names, at least one.
        owner: what was called.
        known: the names that it knows.
        elsewhere: what to say about names of other programs, such as `FIELDS`.
    """
    known = list(known)
    hints = [f"`{name}` {elsewhere[name]}" for name in names if name in elsewhere and name not in known]
    if hints:
        return UnknownParameterError("; ".join(hints))
    name = next(iter(names))
    close = difflib.get_close_matches(name, known, 1)
    remedy = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known)}"
    return UnknownParameterError(f"{owner} has no `{name}`", remedy)
