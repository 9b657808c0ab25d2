// Defaults and rules of parameters, the same in Python and C++.
// Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead.
#pragma once

#include <cstdint>
#include <string>

#include "error.hpp"

// clang-format off
namespace ebca::internal::defaults {

// Image to image runs this share of the steps where strength is not given.
inline constexpr double strength = 0.8;

// Steps where a request does not say, and the engine neither.
inline constexpr int64_t steps = 50;

// InstructPix2Pix follows the image this much where image_guidance_scale is not given.
inline constexpr double image_guidance_scale = 1.5;

// Pixels per latent where the engine directory has no VAE to say it.
inline constexpr int64_t downscale = 8;

namespace engine_params {
inline constexpr const char* device = "cpu";
}

namespace session_params {
inline constexpr int64_t batch = 1;
}

namespace edit {
inline constexpr int64_t direction = 1;
inline constexpr double alpha = 1.0;
inline constexpr double gamma_attn = 0.0;
inline constexpr double gamma_norm = 0.0;
}

namespace repaint_params {
inline constexpr int64_t jump_length = 10;
inline constexpr int64_t jump_count = 10;
inline constexpr double eta = 0.0;
inline constexpr int64_t update_known = 0;
}

namespace generate_params {
inline constexpr int64_t steps = -1;
inline constexpr double gamma_attn = 0.0;
inline constexpr double gamma_norm = 0.0;
inline constexpr double norm_factor = 1.0;
inline constexpr int64_t reset_edits = 0;
inline constexpr int64_t composite = 1;
inline constexpr int64_t latents_only = 0;
inline constexpr double subject_exclusion = 2.0;
inline constexpr double subject_balance = 1.5;
inline constexpr double subject_window = 0.15;
inline constexpr int64_t prompt_weighting = 1;
inline constexpr int64_t long_prompts = 1;
inline constexpr int64_t clip_skip = 0;
}

namespace regularize_params {
inline constexpr int64_t rounds = 5;
inline constexpr int64_t rolls = 5;
inline constexpr double auto_correlation = 20.0;
inline constexpr double kl = 20.0;
inline constexpr int64_t seed = 0;
}

namespace invert_params {
inline constexpr int64_t steps = 50;
inline constexpr int64_t prompt_weighting = 1;
inline constexpr int64_t long_prompts = 1;
inline constexpr int64_t clip_skip = 0;
}

namespace encode_prompt_params {
inline constexpr int64_t prompt_weighting = 1;
inline constexpr int64_t long_prompts = 1;
}

namespace denoise_params {
inline constexpr double norm_factor = 1.0;
inline constexpr int64_t tie_unconditional = 1;
inline constexpr int64_t rows_per_image = 2;
}

}  // namespace ebca::internal::defaults

namespace ebca::internal::limits {

// Pixels of one image: 4096 x 4096. Time grows with their square, where a model attends to itself.
inline constexpr int64_t pixels = 16777216;

// Images per call.
inline constexpr int64_t images = 4096;

// Steps of RePaint in both directions.
inline constexpr int64_t moves = 1000000;

// Subjects of an image: the groups of tokens that the GPU kernels take.
inline constexpr int64_t subjects = 16;

// Positions of the map on which subjects are placed: what a GPU kernel holds in registers.
inline constexpr int64_t subject_positions = 1024;

// Magnitude of a weight in a prompt.
inline constexpr int64_t prompt_weight = 10;

// Chunks of a prompt: the text encoder runs once for each.
inline constexpr int64_t prompt_chunks = 128;

// A number that Stable Diffusion XL is told about sizes: exact in float32.
inline constexpr int64_t size_condition = 16777216;

// Of subject_exclusion and subject_balance each.
inline constexpr int64_t subject_strength = 1000;

}  // namespace ebca::internal::limits

// The errors of rules that parameters break.
namespace ebca::internal::rules {

template <typename Field, typename Value>
ParameterError finite_number(const Field& field, const Value& value) {
    return ParameterError(text(field, " is ", value), "give a finite number");
}

template <typename Field, typename Value>
ParameterError at_least_one(const Field& field, const Value& value) {
    return ParameterError(text(field, " is ", value), "give 1 or more");
}

template <typename Field, typename Value, typename Low, typename High>
ParameterError number_range(const Field& field, const Value& value, const Low& low, const High& high) {
    return ParameterError(text(field, " is ", value), text("give a number from ", low, " to ", high));
}

template <typename Value>
ParameterError norm_factor(const Value& value) {
    return ParameterError(text("norm_factor is ", value), "give 1 (authors' code) or 0.5 (paper)");
}

template <typename Field, typename Value, typename Multiple, typename Low, typename High>
ParameterError side_not_multiple(const Field& field, const Value& value, const Multiple& multiple, const Low& low, const High& high) {
    return ParameterError(text(field, " is ", value), text("give a multiple of ", multiple, ", such as ", low, " or ", high));
}

template <typename Value>
ParameterError batch(const Value& value) {
    return ParameterError(text("batch is ", value), "give 1 or more images");
}

template <typename Count, typename Items, typename Batch>
ParameterError count_per_image(const Count& count, const Items& items, const Batch& batch) {
    return ParameterError(text(count, " ", items, " were given for a batch of ", batch), "give one, or one each");
}

template <typename Height, typename Width, typename Limit>
ParameterError image_too_large(const Height& height, const Width& width, const Limit& limit) {
    return ParameterError(text(height, " x ", width, " pixels are too many for one image"), text("make a smaller one: the limit is ", limit, " pixels (4096 x 4096)"));
}

template <typename Value, typename Limit>
ParameterError batch_too_large(const Value& value, const Limit& limit) {
    return ParameterError(text("batch is ", value), text("make several calls of up to ", limit, " images each"));
}

template <typename Rows, typename Height, typename Width>
OutOfMemoryError no_memory(const Rows& rows, const Height& height, const Width& width) {
    return OutOfMemoryError(text("no memory for ", rows, " rows of ", height, " x ", width, " latents"), "make a smaller image, or fewer at once");
}

template <typename Needed, typename Where, typename What, typename Available>
OutOfMemoryError memory_needed(const Needed& needed, const Where& where, const What& what, const Available& available) {
    return OutOfMemoryError(text("at least ", needed, " of memory", where, " is needed for ", what, ", and ", available, " can be had"), "make a smaller image, or fewer at once");
}

template <typename Needed, typename Where, typename What, typename Available>
OutOfMemoryError memory_needed_untiled(const Needed& needed, const Where& where, const What& what, const Available& available) {
    return OutOfMemoryError(text("at least ", needed, " of memory", where, " is needed for ", what, ", and ", available, " can be had"), "set vae_tiling = 1, make a smaller image, or fewer at once");
}

template <typename InChannels, typename OutChannels>
EngineError unet_channels(const InChannels& in_channels, const OutChannels& out_channels) {
    return EngineError(text("this engine's UNet takes ", in_channels, " channels and gives ", out_channels), "this library makes images with models that take 4 or, for inpainting, 9 channels; Python also has InstructPix2Pix");
}

inline ParameterError mask_without_image() {
    return ParameterError("masks were given without images", "give the images whose masked parts are to be regenerated");
}

inline ParameterError strength_without_image() {
    return ParameterError("strength was given without images", "strength says how far image to image departs from the image; leave it out, or give images");
}

inline ParameterError strength_with_mask() {
    return ParameterError("strength and masks do not go together", "inpainting regenerates the masked part completely; leave strength out");
}

template <typename InChannels>
EngineError inpainting_model_without_mask(const InChannels& in_channels) {
    return EngineError(text("this engine's UNet takes ", in_channels, " channels (an inpainting model)"), "give images and masks");
}

inline ParameterError repaint_with_inpainting_model() {
    return ParameterError("repaint was given, but this model was trained for inpainting", "leave repaint out");
}

inline ParameterError repaint_without_mask() {
    return ParameterError("repaint was given without masks", "leave repaint out, or give masks");
}

inline EngineError no_vae_to_encode() {
    return EngineError("this engine directory has no VAE to encode an image with", "export a whole checkpoint");
}

inline EngineError no_vae_to_decode() {
    return EngineError("this engine directory has no VAE", "ask for latents_only = 1");
}

template <typename Path>
EngineError no_vae_for_image(const Path& path) {
    return EngineError(text("'", path, "' has no VAE"), "pass latents instead of an image");
}

template <typename Count, typename Expected>
ParameterError latents_channels(const Count& count, const Expected& expected) {
    return ParameterError(text("latents have ", count, " channels, the VAE has ", expected), "give as many");
}

inline ParameterError session_busy() {
    return ParameterError("this session is in another call", "use one session per thread, and none from callbacks");
}

template <typename Value>
ParameterError strength_range(const Value& value) {
    return ParameterError(text("strength is ", value), "give a number above 0 (keep the image) and up to 1 (regenerate all of it)");
}

template <typename Value, typename Count>
ParameterError strength_leaves_no_step(const Value& value, const Count& count) {
    return ParameterError(text("strength ", value, " of ", count, " steps leaves no step to run"), "raise either");
}

template <typename Value, typename Choices>
ParameterError scheduler_unknown(const Value& value, const Choices& choices) {
    return ParameterError(text("scheduler '", value, "' is not in this engine"), text("available: ", choices));
}

template <typename Value, typename Reason, typename Choices>
ParameterError scheduler_left_out(const Value& value, const Reason& reason, const Choices& choices) {
    return ParameterError(text("scheduler '", value, "' was left out of this engine: ", reason), text("available: ", choices));
}

template <typename Value>
ParameterError scheduler_with_repaint(const Value& value) {
    return ParameterError(text("scheduler '", value, "' does not apply: RePaint has steps of its own"), "leave it out");
}

template <typename Scheduler>
ParameterError scheduler_starts_at_first_step(const Scheduler& scheduler) {
    return ParameterError(text("scheduler ", scheduler, " looks back over several steps and cannot start at an intermediate timestep"), "use ddim or euler, or strength 1");
}

template <typename Value>
ParameterError steps_below_one(const Value& value) {
    return ParameterError(text("steps is ", value), "give a whole number of at least 1");
}

template <typename Value, typename Scheduler, typename Minimum>
ParameterError steps_below_minimum(const Value& value, const Scheduler& scheduler, const Minimum& minimum) {
    return ParameterError(text("steps is ", value), text(scheduler, " needs at least ", minimum));
}

template <typename Value, typename Scheduler, typename Timesteps>
ParameterError steps_above_training(const Value& value, const Scheduler& scheduler, const Timesteps& timesteps) {
    return ParameterError(text("steps is ", value, ", and ", scheduler, " has ", timesteps, " timesteps to step through"), text("give 1 to ", timesteps));
}

template <typename Scheduler, typename Count, typename Nearest>
ParameterError steps_not_stored(const Scheduler& scheduler, const Count& count, const Nearest& nearest) {
    return ParameterError(text(scheduler, " with ", count, " steps is not in this engine (the nearest stored count is ", nearest, ")"), text("use that, or export again with --scheduler-steps ", count));
}

template <typename Scheduler, typename Count>
ParameterError no_steps_stored(const Scheduler& scheduler, const Count& count) {
    return ParameterError(text(scheduler, " with ", count, " steps is not in this engine (no step count is stored)"), text("export again with --scheduler-steps ", count));
}

template <typename Value>
ParameterError eta_range(const Value& value) {
    return ParameterError(text("eta is ", value), "give a number from 0 to 1");
}

template <typename Value, typename Limit>
ParameterError repaint_steps(const Value& value, const Limit& limit) {
    return ParameterError(text("steps is ", value), text("RePaint takes 1 to ", limit));
}

template <typename Value, typename Limit>
ParameterError repaint_moves(const Value& value, const Limit& limit) {
    return ParameterError(text("jump_count is ", value, ", which makes more than ", limit, " moves"), "give a smaller one");
}

template <typename What>
ParameterError noise_prediction(const What& what) {
    return ParameterError(text(what, " needs a model that predicts noise, and this one does not"), "use another model");
}

inline EngineError inversion_with_inpainting_model() {
    return EngineError("this engine is an inpainting model or another that sees an image", "inversion needs one that takes the latents alone");
}

inline ParameterError inversion_input() {
    return ParameterError("inversion needs either images or the latents of images", "set images or latents, not both");
}

template <typename Count, typename Batch>
ParameterError seed_count(const Count& count, const Batch& batch) {
    return ParameterError(text("seeds has ", count, " values for a batch of ", batch), "give one, or one each");
}

template <typename Shape, typename Expected>
ParameterError latents_shape(const Shape& shape, const Expected& expected) {
    return ParameterError(text("latents have shape ", shape, ", this session needs ", expected), "give that shape");
}

template <typename Shape, typename Channels, typename Images, typename Pixels>
ParameterError latents_layout(const Shape& shape, const Channels& channels, const Images& images, const Pixels& pixels) {
    return ParameterError(text("latents have shape ", shape), text("give [images, ", channels, ", height, width] of at most ", images, " images of ", pixels, " pixels"));
}

inline ParameterError latents_not_finite() {
    return ParameterError("latents have values that are not finite", "give finite numbers");
}

template <typename Which>
ParameterError mask_empty(const Which& which) {
    return ParameterError(text(which, " is empty: no pixel is white, so nothing would be regenerated"), "paint the part to regenerate white");
}

template <typename Downscale>
ParameterError mask_too_small(const Downscale& downscale) {
    return ParameterError(text("the white part of the mask is too small: it covers the top left pixel of no ", downscale, " x ", downscale, " block"), "enlarge it");
}

template <typename MaskWidth, typename MaskHeight, typename ImageWidth, typename ImageHeight>
std::string mask_stretched(const MaskWidth& mask_width, const MaskHeight& mask_height, const ImageWidth& image_width, const ImageHeight& image_height) {
    return text("the mask has ", mask_width, " x ", mask_height, " pixels, the image ", image_width, " x ", image_height, "; ", "the mask is stretched to fit");
}

template <typename Name>
std::string image_transparent(const Name& name) {
    return text(name, " has transparent pixels", "; ", "they are composited on white");
}

template <typename Name>
std::string mask_colours_and_transparency(const Name& name) {
    return text(name, " has several colours and transparency", "; ", "its colours are used: white is regenerated; for transparency, fill it with one colour");
}

template <typename Name, typename Height, typename Width, typename Channels, typename Data>
ParameterError image_layout(const Name& name, const Height& height, const Width& width, const Channels& channels, const Data& data) {
    return ParameterError(text(name, " has ", height, " x ", width, " pixels of ", channels, " channels", data), "give [height, width, 3] bytes (1 and 4 channels work too)");
}

template <typename Name>
ParameterError prompt_or_embeds(const Name& name) {
    return ParameterError(text(name, " has both texts and embeddings, or neither"), "give either texts or embeds");
}

template <typename Name, typename Count, typename Batch>
ParameterError prompt_count(const Name& name, const Count& count, const Batch& batch) {
    return ParameterError(text(name, " has ", count, " texts for a batch of ", batch), "give one, or one each");
}

template <typename Name, typename Limit, typename Dropped>
std::string prompt_truncated(const Name& name, const Limit& limit, const Dropped& dropped) {
    return text("the ", name, " is longer than ", limit, " tokens", "; ", "dropped: '", dropped, "'");
}

template <typename Sign, typename Position, typename Near>
ParameterError prompt_bracket_open(const Sign& sign, const Position& position, const Near& near) {
    return ParameterError(text("'", sign, "' at character ", position, " of a prompt is not closed: '", near, "'"), text("close it, write \\", sign, " for text, or set prompt_weighting = 0"));
}

template <typename Sign, typename Position, typename Near>
ParameterError prompt_bracket_closed(const Sign& sign, const Position& position, const Near& near) {
    return ParameterError(text("'", sign, "' at character ", position, " of a prompt closes nothing: '", near, "'"), text("remove it, write \\", sign, " for text, or set prompt_weighting = 0"));
}

template <typename Found>
ParameterError prompt_editing(const Found& found) {
    return ParameterError(text("'", found, "' in a prompt would change it while the image is made, which is not supported"), "write (word:1.3) for a weight, \\[ for text, or set prompt_weighting = 0");
}

template <typename Words, typename Value, typename Limit>
ParameterError prompt_weight(const Words& words, const Value& value, const Limit& limit) {
    return ParameterError(text("'", words, "' in a prompt has the weight ", value), text("give -", limit, " to ", limit, ", write \\( for text, or set prompt_weighting = 0"));
}

template <typename Count, typename Room, typename Limit>
ParameterError prompt_chunks(const Count& count, const Room& room, const Limit& limit) {
    return ParameterError(text("a prompt has ", count, " chunks of up to ", room, " tokens"), text("shorten it to ", limit, " chunks, or turn long_prompts off"));
}

template <typename Name>
ParameterError prompt_weights_cancel(const Name& name) {
    return ParameterError(text("the weights of the ", name, " make the mean of its embeddings zero"), "change one of them");
}

template <typename Value, typename Layers, typename Last>
ParameterError clip_skip_range(const Value& value, const Layers& layers, const Last& last) {
    return ParameterError(text("clip_skip is ", value), text("the text encoder has ", layers, " layers: give 0 to ", last));
}

inline EngineError clip_skip_engine() {
    return EngineError("this engine directory has only the last layer of its text encoder, so there is no clip_skip", "export it again");
}

template <typename Backend>
EngineError clip_skip_plans(const Backend& backend) {
    return EngineError(text("the plans for ", backend, " have only the last layer of the text encoder, so there is no clip_skip"), "leave it out, or use another backend");
}

template <typename Name, typename Shape, typename Batch, typename Width>
ParameterError embeds_shape(const Name& name, const Shape& shape, const Batch& batch, const Width& width) {
    return ParameterError(text(name, " has shape ", shape), text("give [", batch, ", tokens, ", width, "]"));
}

template <typename Name>
ParameterError embeds_not_finite(const Name& name) {
    return ParameterError(text(name, " has values that are not finite"), "give finite numbers");
}

template <typename Name, typename Shape, typename Expected>
ParameterError embeds_differ(const Name& name, const Shape& shape, const Expected& expected) {
    return ParameterError(text(name, " has shape ", shape, ", prompt.embeds has ", expected), "give the same shape");
}

inline ParameterError guidance_needs_negative() {
    return ParameterError("guidance needs negative_prompt.embeds beside prompt.embeds", "give them, or set guidance_scale = 1");
}

template <typename Path>
EngineError unet_only(const Path& path) {
    return EngineError(text("'", path, "' holds a UNet only"), "pass prompt.embeds instead of a prompt");
}

template <typename Path>
EngineError no_text_encoder(const Path& path) {
    return EngineError(text("'", path, "' has no text encoder"), "pass prompt.embeds instead of a prompt");
}

template <typename Name>
ParameterError added_engine(const Name& name) {
    return ParameterError(text(name, " is for models that take pooled embeddings and sizes, as Stable Diffusion XL does, and this one takes none"), "leave it out");
}

template <typename Name, typename Other>
ParameterError second_prompt_with_embeds(const Name& name, const Other& other) {
    return ParameterError(text(name, " and ", other, " do not go together"), "leave one out: the embeddings are of both text encoders");
}

template <typename Name, typename Other, typename Width>
ParameterError pooled_needed(const Name& name, const Other& other, const Width& width) {
    return ParameterError(text(name, " needs ", other, " beside it"), text("give the pooled embeddings of the same text, [1 or one per image, ", width, "]"));
}

template <typename Name, typename Other>
ParameterError pooled_alone(const Name& name, const Other& other) {
    return ParameterError(text(name, " is given without ", other), "give both, or a text");
}

template <typename Name, typename Shape, typename Batch, typename Width>
ParameterError pooled_shape(const Name& name, const Shape& shape, const Batch& batch, const Width& width) {
    return ParameterError(text(name, " has shape ", shape), text("give [", batch, ", ", width, "]"));
}

template <typename Name, typename Value, typename Limit, typename Meaning>
ParameterError size_condition(const Name& name, const Value& value, const Limit& limit, const Meaning& meaning) {
    return ParameterError(text(name, " is ", value), text("give two whole numbers from 0 to ", limit, ": ", meaning));
}

template <typename Name, typename Other>
ParameterError negative_sizes(const Name& name, const Other& other) {
    return ParameterError(text(name, " needs ", other, " beside it"), "give its original and its target size together, or leave all of negative_size_conditions 0");
}

template <typename Key, typename Value>
ParameterError token_factor(const Key& key, const Value& value) {
    return ParameterError(text("the factor of '", key, "' in token_weights is ", value), "give a finite number");
}

template <typename Position, typename Last>
ParameterError token_position(const Position& position, const Last& last) {
    return ParameterError(text("token_weights names position ", position), text("there are positions 0 to ", last));
}

template <typename Word>
ParameterError token_word_without_prompt(const Word& word) {
    return ParameterError(text("token_weights names the word '", word, "'"), "beside prompt.embeds, give its position");
}

template <typename Word>
ParameterError token_word_of_several_prompts(const Word& word) {
    return ParameterError(text("token_weights names the word '", word, "', which needs one prompt for all images"), "give its position instead");
}

template <typename Word>
ParameterError word_without_tokens(const Word& word) {
    return ParameterError(text("the word ", word, " has no tokens"), "give a word or phrase of the prompt");
}

template <typename Word, typename Tokens>
ParameterError word_not_in_prompt(const Word& word, const Tokens& tokens) {
    return ParameterError(text("the word ", word, " is not in the prompt"), text("the prompt's tokens are: ", tokens));
}

template <typename Word, typename Limit, typename Tokens>
ParameterError word_beyond_limit(const Word& word, const Limit& limit, const Tokens& tokens) {
    return ParameterError(text("the word ", word, " is only beyond the first ", limit, " tokens of the prompt, and later tokens are not used"), text("the prompt's tokens are: ", tokens));
}

inline EngineError subjects_engine() {
    return EngineError("this engine directory has no layers for subjects", "export it again");
}

inline ParameterError subjects_need_text() {
    return ParameterError("subjects are words of the prompt, and prompt.embeds has none", "give the prompt as a text");
}

template <typename Field>
ParameterError subject_empty(const Field& field) {
    return ParameterError(text(field, " has an empty phrase"), "give words of the prompt");
}

template <typename Prompt, typename Count, typename Limit>
ParameterError subjects_too_many(const Prompt& prompt, const Count& count, const Limit& limit) {
    return ParameterError(text("the prompt '", prompt, "' has ", count, " subjects, and the limit is ", limit), "name those that matter");
}

template <typename Subject, typename Prompt>
ParameterError subject_not_in_prompt(const Subject& subject, const Prompt& prompt) {
    return ParameterError(text("the subject '", subject, "' is not in the prompt '", prompt, "'"), "give words as they stand in it");
}

template <typename Subject, typename Limit>
ParameterError subject_beyond_limit(const Subject& subject, const Limit& limit) {
    return ParameterError(text("the subject '", subject, "' is only beyond the first ", limit, " tokens of the prompt, and later tokens are not used"), "shorten the prompt before it, or leave the subject out");
}

template <typename Subject, typename Count, typename Prompt, typename Found>
ParameterError subject_repeated(const Subject& subject, const Count& count, const Prompt& prompt, const Found& found) {
    return ParameterError(text("the subject '", subject, "' is named more often (", count, ") than it stands in the prompt '", prompt, "' (", found, ")"), "name each thing once");
}

template <typename Subject, typename Other, typename Prompt>
ParameterError subjects_overlap(const Subject& subject, const Other& other, const Prompt& prompt) {
    return ParameterError(text("the subjects '", subject, "' and '", other, "' share words of the prompt '", prompt, "'"), "name each thing by words of its own");
}

template <typename Name, typename Value, typename Index, typename Limit>
ParameterError subject_strength(const Name& name, const Value& value, const Index& index, const Limit& limit) {
    return ParameterError(text(name, " is ", value, " at evaluation ", index), text("give numbers from 0 to ", limit));
}

template <typename Subject, typename Prompt>
std::string subject_alone(const Subject& subject, const Prompt& prompt) {
    return text("'", subject, "' is the only subject of the prompt '", prompt, "'", "; ", "nothing is done for a single subject without a region");
}

template <typename Height, typename Width, typename Limit>
ParameterError subject_map_size(const Height& height, const Width& width, const Limit& limit) {
    return ParameterError(text("the map on which subjects are placed has ", height, " x ", width, " positions"), text("make a smaller image: the limit is ", limit, " positions"));
}

template <typename Subject, typename Width, typename Height, typename ImageWidth, typename ImageHeight>
ParameterError region_aspect(const Subject& subject, const Width& width, const Height& height, const ImageWidth& image_width, const ImageHeight& image_height) {
    return ParameterError(text("the region of '", subject, "' is ", width, " x ", height, " pixels, the image ", image_width, " x ", image_height), "give a mask of the image's aspect ratio");
}

template <typename Subject>
ParameterError region_empty(const Subject& subject) {
    return ParameterError(text("the region of '", subject, "' is empty: no pixel is white"), "paint the place of the subject white");
}

template <typename Shape, typename Channels, typename Height, typename Width>
ParameterError sample_shape(const Shape& shape, const Channels& channels, const Height& height, const Width& width) {
    return ParameterError(text("sample has shape ", shape), text("give [rows, ", channels, ", ", height, ", ", width, "], which this UNet and this session take"));
}

template <typename Shape, typename Rows, typename Width>
ParameterError contexts_shape(const Shape& shape, const Rows& rows, const Width& width) {
    return ParameterError(text("contexts has shape ", shape), text("give [", rows, ", contexts, tokens, ", width, "]"));
}

template <typename Count, typename Rows>
ParameterError timestep_count(const Count& count, const Rows& rows) {
    return ParameterError(text("timesteps has ", count, " values for ", rows, " rows"), "give one, or one each");
}

template <typename Name, typename Shape, typename Expected>
ParameterError control_shape(const Name& name, const Shape& shape, const Expected& expected) {
    return ParameterError(text(name, " has shape ", shape), text("give ", expected, ", or fewer or single dimensions of it"));
}

template <typename Shape, typename Rows, typename Height, typename Width>
ParameterError mask_shape(const Shape& shape, const Rows& rows, const Height& height, const Width& width) {
    return ParameterError(text("mask has shape ", shape), text("give [", rows, " or 1, 1, ", height, ", ", width, "]: the latents' size, 1 = hole"));
}

template <typename Value>
ParameterError rows_per_image(const Value& value) {
    return ParameterError(text("rows_per_image is ", value), "give 1 or more");
}

template <typename Count, typename Limit>
ParameterError edits_too_many(const Count& count, const Limit& limit) {
    return ParameterError(text(count, " editing prompts are more than the ", limit, " that this engine was built for"), "use fewer, or export it again for more");
}

template <typename Where, typename Value>
ParameterError edit_direction(const Where& where, const Value& value) {
    return ParameterError(text(where, " has direction ", value), "give 1 (conjunction: add) or 0 (negation: take away)");
}

template <typename Where>
ParameterError edit_alpha_negative(const Where& where) {
    return ParameterError(text("alpha of ", where, " is negative"), "give direction = 0 with a positive alpha instead");
}

template <typename Index, typename Terms>
ParameterError edit_alphas_cancel(const Index& index, const Terms& terms) {
    return ParameterError(text("the alphas cancel at evaluation ", index, ": 1 ", terms, " is about 0, and the output is divided by it"), "change an alpha");
}

template <typename Name, typename Field, typename Value>
ParameterError schedule_number(const Name& name, const Field& field, const Value& value) {
    return ParameterError(text(name, ": ", field, " is ", value), "give a finite number");
}

template <typename Name, typename Value>
ParameterError schedule_tau(const Name& name, const Value& value) {
    return ParameterError(text(name, ": parameter (tau) is ", value), "give a share of the steps, from 0 to 1");
}

template <typename Name, typename Value>
ParameterError schedule_kind(const Name& name, const Value& value) {
    return ParameterError(text(name, " has the unknown kind ", value), "give one of EBCA_SCHEDULE_...");
}

template <typename Name, typename Count, typename Scheduler, typename Steps, typename Evaluations>
ParameterError schedule_length(const Name& name, const Count& count, const Scheduler& scheduler, const Steps& steps, const Evaluations& evaluations) {
    return ParameterError(text(name, " has ", count, " values, but ", scheduler, " with ", steps, " steps makes ", evaluations, " evaluations"), "give one value per evaluation, or a schedule of another kind");
}

template <typename Name, typename Value, typename Index>
ParameterError schedule_value(const Name& name, const Value& value, const Index& index) {
    return ParameterError(text(name, ": value ", value, " at evaluation ", index, " is not a finite float32 number"), "give finite numbers");
}

template <typename Name>
ParameterError gamma_not_finite(const Name& name) {
    return ParameterError(text(name, " has values that are not finite"), "give finite numbers");
}

template <typename Count, typename Total>
CancelledError cancelled(const Count& count, const Total& total) {
    return CancelledError(text("cancelled after ", count, " of ", total, " evaluations"));
}

inline UnsupportedError telemetry_on_gpu() {
    return UnsupportedError("this library records energies and attention maps on the CPU only", "set record_energies = 0 and record_attention = 0, open the engine on the CPU, or use Python");
}

inline CancelledError cancelled_early() {
    return CancelledError("cancelled before the first evaluation");
}

template <typename What>
CancelledError cancelled_in(const What& what) {
    return CancelledError(text("cancelled in ", what));
}

inline CancelledError cancelled_late() {
    return CancelledError("cancelled when everything was computed");
}

template <typename Timestep, typename Culprit>
NumericalError result_not_finite(const Timestep& timestep, const Culprit& culprit) {
    return NumericalError(text("the result at timestep ", timestep, " is not finite, first in ", culprit), "lower gamma_attn and gamma_norm, or check the checkpoint");
}

template <typename Timestep, typename Culprit, typename What>
NumericalError result_of_bad_input(const Timestep& timestep, const Culprit& culprit, const What& what) {
    return NumericalError(text("the result at timestep ", timestep, " is not finite, first in ", culprit, ": the ", what, " given to it had such values"), "give finite numbers");
}

template <typename Timestep>
NumericalError latents_ran_away(const Timestep& timestep) {
    return NumericalError(text("the latents after timestep ", timestep, " are not finite, though the noise prediction is"), "lower guidance_scale");
}

inline NumericalError image_not_finite() {
    return NumericalError("the image is not finite, first in the VAE decoder", "lower gamma_attn and gamma_norm, or check the checkpoint");
}

inline UnsupportedError no_tokenizer() {
    return UnsupportedError("this library was built without the tokenizer, which texts need", "pass prompt.embeds and negative_prompt.embeds, or build it with EBCA_TOKENIZER=ON");
}

template <typename FromWidth, typename FromHeight, typename Width, typename Height>
UnsupportedError no_resizing(const FromWidth& from_width, const FromHeight& from_height, const Width& width, const Height& height) {
    return UnsupportedError(text("this library was built without resizing, and an image of ", from_width, " x ", from_height, " pixels was given"), text("give ", width, " x ", height, " pixels, or build it with EBCA_RESIZE=ON"));
}

inline ParameterError engine_null() {
    return ParameterError("the engine is NULL", "open one with ebca_engine_open");
}

inline ParameterError session_null() {
    return ParameterError("the session is NULL", "create one with ebca_session_create");
}

template <typename What>
ParameterError target_null(const What& what) {
    return ParameterError(text("the pointer that receives the ", what, " is NULL"), "pass the address of a variable");
}

template <typename Name>
ParameterError is_null(const Name& name) {
    return ParameterError(text(name, " is NULL"));
}

template <typename Name, typename Size, typename First, typename Last, typename Version>
ParameterError struct_size(const Name& name, const Size& size, const First& first, const Last& last, const Version& version) {
    return ParameterError(text(name, " has struct_size ", size, ", this library knows ", first, " to ", last), text("call ", name, "_init, and compile against a header of version ", version, " or older"));
}

template <typename Name, typename Size, typename First, typename Last, typename Version>
ParameterError struct_size_plain(const Name& name, const Size& size, const First& first, const Last& last, const Version& version) {
    return ParameterError(text(name, " has struct_size ", size, ", this library knows ", first, " to ", last), text("set it to sizeof(", name, "), and compile against a header of version ", version, " or older"));
}

template <typename Given, typename Own, typename Version>
ParameterError abi_version(const Given& given, const Own& own, const Version& version) {
    return ParameterError(text("the host was compiled for version ", given, " of the binary interface, and this library has version ", own), text("compile it with the header of this library (", version, "), or load a library for version ", given));
}

template <typename Name>
ParameterError reserved_not_zero(const Name& name) {
    return ParameterError(text(name, ".reserved is not zero"), "fill the whole struct with zeros before its fields are set");
}

template <typename Name, typename Kind, typename Names>
ParameterError enum_name(const Name& name, const Kind& kind, const Names& names) {
    return ParameterError(text("'", name, "' is not the name of a value of ", kind), text("give one of: ", names));
}

inline ParameterError path_missing() {
    return ParameterError("path is missing", "name an engine directory, or set read");
}

template <typename Index, typename Count>
ParameterError device_index(const Index& index, const Count& count) {
    return ParameterError(text("there is no device ", index), text("ebca_device_count says how many there are: ", count));
}

template <typename Name, typename Count>
ParameterError list_null(const Name& name, const Count& count) {
    return ParameterError(text(name, " is NULL, but ", count, " are announced"));
}

template <typename Name, typename Count, typename Limit>
ParameterError list_too_long(const Name& name, const Count& count, const Limit& limit) {
    return ParameterError(text(name, " has ", count, " entries"), text("the limit is ", limit));
}

template <typename Name, typename Position>
ParameterError text_not_utf8(const Name& name, const Position& position) {
    return ParameterError(text(name, " is not UTF-8 at byte ", position), "give UTF-8");
}

template <typename Name, typename Limit>
ParameterError text_too_long(const Name& name, const Limit& limit) {
    return ParameterError(text(name, " is longer than ", limit, " bytes"), "give a shorter text");
}

inline ParameterError path_and_read() {
    return ParameterError("both path and read are given", "give one of them");
}

template <typename Count, typename Size, typename File>
ParameterError read_overran(const Count& count, const Size& size, const File& file) {
    return ParameterError(text("the callback read returned ", count, " for ", size, " bytes of '", file, "'"), "return how many bytes were copied, at most the size that was asked for");
}

template <typename Name, typename What>
ParameterError callback_threw(const Name& name, const What& what) {
    return ParameterError(text("the callback ", name, " threw an exception", what), "catch it in the callback: nothing may be thrown through a function of C");
}

template <typename Name>
ParameterError embeds_of_second(const Name& name) {
    return ParameterError(text(name, ".embeds is given"), "embeddings are of both text encoders: give them as embeds of the first prompt, or give texts");
}

template <typename Name, typename Count, typename Limit>
ParameterError embeds_too_long(const Name& name, const Count& count, const Limit& limit) {
    return ParameterError(text(name, ".embeds has ", count, " tokens"), text("give 1 to ", limit));
}

template <typename Name, typename Height, typename Width, typename Limit>
ParameterError image_too_many_pixels(const Name& name, const Height& height, const Width& width, const Limit& limit) {
    return ParameterError(text(name, " has ", height, " x ", width, " pixels"), text("give an image of at most ", limit, " pixels"));
}

template <typename Name, typename Value>
ParameterError tensor_memory(const Name& name, const Value& value) {
    return ParameterError(text(name, " have the unknown memory ", value), "give EBCA_MEMORY_HOST or EBCA_MEMORY_CUDA");
}

inline ParameterError result_on_gpu() {
    return ParameterError("the result is in the memory of a GPU already", "use its addresses there");
}

template <typename Name, typename Value>
ParameterError tensor_rank(const Name& name, const Value& value) {
    return ParameterError(text(name, " have rank ", value), "give 1 to 4 dimensions");
}

template <typename Name, typename Shape>
ParameterError tensor_shape(const Name& name, const Shape& shape) {
    return ParameterError(text(name, " have shape ", shape), "give positive sizes of fewer than 2^40 values");
}

}  // namespace ebca::internal::rules
