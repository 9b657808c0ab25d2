/* ebca: Energy-Based Cross Attention on Stable Diffusion, for hosts in C and C++ without Python.
 *
 *     ebca_engine_params open;
 *     ebca_engine_params_init(&open, sizeof open);
 *     open.abi_version = EBCA_ABI_VERSION;
 *     open.path = "engine-sd15";
 *     ebca_engine* engine;
 *     ebca_session* session;
 *     ebca_result* result;
 *     if (ebca_engine_open(&open, &engine) != EBCA_OK) puts(ebca_last_error());
 *     ebca_session_create(engine, NULL, &session);
 *     ebca_generate_params make;
 *     ebca_generate_params_init(&make, sizeof make);
 *     const char* prompt = "a lion with a crown";
 *     make.prompt.texts = &prompt;
 *     make.prompt.count = 1;
 *     ebca_session_generate(session, &make, &result);     result->pixels: [n, height, width, 3] bytes
 *     ebca_result_free(result);
 *     ebca_session_free(session);
 *     ebca_engine_free(engine);
 *
 * Rules:
 * - Every call that can fail returns an ebca_status. The text of the error is in ebca_last_error() of the calling
 *   thread and in ebca_session_last_error() of the session; both stay valid until the next call there.
 * - Parameter structs begin with their size. Their _init function takes the size and sets the defaults, so that a host
 *   compiled against an older header works with a newer library.
 * - Structs without a size have `reserved` words, which must be zero: fill them with zeros before you set fields.
 * - Arguments belong to the caller and may be freed when the call returns, unless a field says otherwise. What the
 *   library returns is freed by its _free function, which accepts NULL.
 * - An engine is shared by threads. A session is used by one thread at a time, except for ebca_session_cancel. A
 *   session keeps its engine alive: they may be freed in any order.
 * - Arrays are C-contiguous. Letters: n images, T tokens, D width of the contexts, P width of pooled embeddings (Stable
 *   Diffusion XL), C latent channels, h x w latents, m evaluations of the UNet (pndm makes one more than steps).
 * - Callbacks are called from the thread that made the call. They must not use the same session except for
 *   ebca_session_cancel, and must not throw: what a callback in C++ throws ends the call with EBCA_ERROR_PARAMETER.
 * - The library writes nothing to standard output or standard error.
 */
#ifndef EBCA_H
#define EBCA_H

#include <stddef.h>
#include <stdint.h>

/* from runtime/schema/schema.toml: version */
/* Of this header. EBCA_VERSION is for comparisons: 10203 is 1.2.3. */
#define EBCA_VERSION_MAJOR 0
#define EBCA_VERSION_MINOR 1
#define EBCA_VERSION_PATCH 0
#define EBCA_VERSION (EBCA_VERSION_MAJOR * 10000 + EBCA_VERSION_MINOR * 100 + EBCA_VERSION_PATCH)
#define EBCA_VERSION_TEXT "0.1.0"
/* A host works with every library of the same number, from that of its header on. */
#define EBCA_ABI_VERSION 1
/* end */

/* Define EBCA_STATIC to link the static library. (EBCA_BUILDING is defined where the shared one is compiled.) */
#if defined(EBCA_STATIC)
#define EBCA_API
#elif defined(_WIN32) && defined(EBCA_BUILDING)
#define EBCA_API __declspec(dllexport)
#elif defined(_WIN32)
#define EBCA_API __declspec(dllimport)
#elif defined(__GNUC__)
#define EBCA_API __attribute__((visibility("default")))
#else
#define EBCA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* from runtime/schema/schema.toml: ebca_status */
typedef enum ebca_status {
    EBCA_OK = 0,
    EBCA_ERROR_PARAMETER = 1,     /* a call parameter with a wrong value, shape or size */
    EBCA_ERROR_ENGINE = 2,        /* an engine directory, or a file in it, that cannot be used */
    EBCA_ERROR_BACKEND = 3,       /* a driver or a library is missing, too old, or cannot run the engine */
    EBCA_ERROR_NUMERICAL = 4,     /* a result that is not finite; the text names the first segment */
    EBCA_ERROR_CANCELLED = 5,     /* the caller asked to stop; the session stays usable */
    EBCA_ERROR_UNSUPPORTED = 6,   /* something this build of the library cannot do */
    EBCA_ERROR_OUT_OF_MEMORY = 7, /* not enough memory on the host or the GPU */
    EBCA_ERROR_INTERNAL = 8,      /* a bug in this library */
} ebca_status;

/* EBCA_ERROR_INTERNAL is "error_internal"; another value is "unknown". */
EBCA_API const char* ebca_status_name(ebca_status value);
EBCA_API ebca_status ebca_status_from_name(const char* name, ebca_status* value);
/* end */

typedef struct ebca_engine ebca_engine;
typedef struct ebca_session ebca_session;

/* EBCA_VERSION_TEXT and EBCA_ABI_VERSION of the library. A host that loads it with dlopen compares the latter with its
 * header's; one that is linked has the loader do so, or sets ebca_engine_params::abi_version. */
EBCA_API const char* ebca_version(void);
EBCA_API uint32_t ebca_abi_version(void);

/* Text of the last error of the calling thread, "" if there was none. It is problem and remedy joined with "; ". */
EBCA_API const char* ebca_last_error(void);
/* What is wrong: the thing and the value. */
EBCA_API const char* ebca_last_problem(void);
/* What to do about it; "" if nothing can be done, or if the problem says it. */
EBCA_API const char* ebca_last_remedy(void);

/* ---- devices ---------------------------------------------------------------------------------------------------- */

/* from runtime/schema/schema.toml: ebca_device_info */
/* A device that engines can be opened on. */
typedef struct ebca_device_info {
    size_t struct_size;
    char device[16];          /* as in ebca_engine_params: "cpu", "cuda:0" */
    char name[240];           /* of the processor or the GPU, cut if it is longer */
    int64_t memory_bytes;     /* of the machine or the GPU */
    int32_t capability_major; /* CUDA's compute capability; 0: no GPU */
    int32_t capability_minor;
} ebca_device_info;
/* end */

/* The CPU, then the GPUs in CUDA's order; without an NVIDIA driver the CPU alone. Whether an engine can be opened on a
 * GPU also depends on what else is installed. */
EBCA_API ebca_status ebca_device_count(size_t* count);

/* struct_size must be set. index: below the count. */
EBCA_API ebca_status ebca_device_get_info(size_t index, ebca_device_info* info);

/* ---- engines ---------------------------------------------------------------------------------------------------- */

/* from runtime/schema/schema.toml: ebca_log_level */
typedef enum ebca_log_level {
    EBCA_LOG_WARNING = 0,
    EBCA_LOG_INFO = 1,
} ebca_log_level;

/* EBCA_LOG_INFO is "info"; another value is "unknown". */
EBCA_API const char* ebca_log_level_name(ebca_log_level value);
EBCA_API ebca_status ebca_log_level_from_name(const char* name, ebca_log_level* value);
/* end */

typedef void (*ebca_log_callback)(ebca_log_level level, const char* message, void* user_data);

/* Before component `done` of `total` is prepared, and once with done == total and component "" at the end. Must not
 * open this engine directory: opening it waits until it is prepared. */
typedef void (*ebca_prepare_callback)(int64_t done, int64_t total, const char* component, void* user_data);

/* Copies up to `size` bytes of a file of the engine directory, from `offset` on, into `buffer`, and returns how many: 0
 * at the end of the file, -1 if there is no such file or it cannot be read. file: its path in the directory, with
 * slashes: "manifest.json", "unet/segment_00.onnx.data". Each file is read from its beginning to its end, one after the
 * other. Must not open an engine with the same files: that waits until they are copied. */
typedef int64_t (*ebca_read_callback)(const char* file, int64_t offset, void* buffer, int64_t size, void* user_data);

/* from runtime/schema/schema.toml: ebca_engine_params */
/* How to open an engine directory. */
typedef struct ebca_engine_params {
    size_t struct_size;
    uint32_t abi_version;             /* EBCA_ABI_VERSION, that of the host's header; 0: not checked */
    const char* path;                 /* the engine directory (UTF-8); NULL: `read` gives its files */
    const char* device;               /* "cpu", "cuda" (the first GPU), "cuda:1" (default "cpu") */
    const char* onnxruntime_library;  /* libonnxruntime.so; NULL: EBCA_ORT_LIB, then the loader's search path */
    const char* cache_dir;            /* for prepared engines; NULL: EBCA_CACHE_DIR, then the user's cache folder */
    int32_t threads;                  /* per graph; 0: one per physical core */
    void* cuda_stream;                /* For device "cuda": a cudaStream_t of the GPU's primary context to work on,
                                         which must outlive the engine and its sessions. NULL: a stream of the
                                         engine's own. */
    ebca_prepare_callback on_prepare; /* NULL: none */
    void* on_prepare_data;
    ebca_log_callback log; /* Called by any thread that uses the engine, until its sessions are freed too. NULL:
                              none. */
    void* log_data;
    /* For device "cpu": */
    const char* backend;          /* "onnxruntime", "openvino"; NULL: onnxruntime for fp32, openvino for bf16 */
    const char* precision;        /* "fp32", "bf16" (openvino, on a processor that has it); NULL: fp32 */
    const char* openvino_library; /* libopenvino_c.so; NULL: EBCA_OPENVINO_LIB, then the loader's search path */
    /* For device "cuda": */
    const char* kernels_dir;          /* Folder of the compiled kernels. NULL: EBCA_KERNELS_DIR, then
                                         share/ebca/kernels below the prefix that the library is installed in. */
    const char* tensorrt_rtx_library; /* ONNX Runtime's provider for TensorRT for RTX. NULL: EBCA_TRT_RTX_EP_LIB; if
                                         that is not set either, ONNX Runtime's CUDA provider runs the graphs. */
    /* Instead of path: */
    ebca_read_callback read; /* Gives the files of an engine directory that lies in an archive or in memory. NULL:
                                path names it. */
    void* read_data;
} ebca_engine_params;
/* end */

EBCA_API void ebca_engine_params_init(ebca_engine_params* params, size_t struct_size);

/* Open an engine directory. On the first call on a machine every component is prepared for it and kept in the user's
 * cache, which takes up to a minute at Stable Diffusion 1.5 size; later calls take a second or less. With `read`, which
 * is called only here and from this thread, the first call also copies the files into that cache; later ones read
 * manifest.json alone. Thread-safe. */
EBCA_API ebca_status ebca_engine_open(const ebca_engine_params* params, ebca_engine** engine);

/* Sessions that are open keep what they need. */
EBCA_API void ebca_engine_free(ebca_engine* engine);

/* The same for the last error of a call with this engine, from any thread; valid until this thread's next call. */
EBCA_API const char* ebca_engine_last_error(const ebca_engine* engine);
EBCA_API const char* ebca_engine_last_problem(const ebca_engine* engine);
EBCA_API const char* ebca_engine_last_remedy(const ebca_engine* engine);

/* from runtime/schema/schema.toml: ebca_task */
enum {
    EBCA_TASK_TEXT_TO_IMAGE = 1,
    EBCA_TASK_EDITING = 2, /* editing prompts */
    EBCA_TASK_IMAGE_TO_IMAGE = 4,
    EBCA_TASK_INPAINTING = 8, /* by a model trained for it, or by RePaint */
    EBCA_TASK_INVERSION = 16,
};

/* EBCA_TASK_INVERSION is "inversion"; what is not one flag is "unknown". */
EBCA_API const char* ebca_task_name(uint32_t value);
EBCA_API ebca_status ebca_task_from_name(const char* name, uint32_t* value);
/* end */

/* from runtime/schema/schema.toml: ebca_engine_info */
/* What an engine can do. The strings belong to the engine. */
typedef struct ebca_engine_info {
    size_t struct_size;
    const char* model;           /* its name */
    const char* kind;            /* "text-to-image", "inpainting", "instruct-pix2pix", "unet" */
    const char* backend;         /* "onnxruntime", "openvino", "onnxruntime-cuda", "onnxruntime-tensorrt-rtx" */
    const char* backend_version; /* of the library that was loaded */
    uint32_t tasks;              /* EBCA_TASK_... flags */
    int32_t has_text_encoder;    /* 0: pass embeddings instead of texts */
    int32_t has_vae;             /* 0: pass latents, and ask for latents only */
    int32_t height;              /* in pixels, as the model was trained */
    int32_t width;
    int32_t downscale;       /* pixels per latent */
    int32_t latent_channels; /* C */
    int32_t context_width;   /* D */
    int32_t max_tokens;      /* T of the text encoder; 0: there is none */
    int32_t threads;         /* per graph */
    double guidance_scale;   /* default */
    const char* scheduler;   /* default */
    const char* schedulers;  /* all of them, separated by commas */
    int32_t pooled_width;    /* P of pooled embeddings (Stable Diffusion XL); 0: it takes none, and none of the
                                fields for it */
} ebca_engine_info;
/* end */

/* struct_size must be set. */
EBCA_API ebca_status ebca_engine_get_info(ebca_engine* engine, ebca_engine_info* info);

/* ---- sessions --------------------------------------------------------------------------------------------------- */

/* from runtime/schema/schema.toml: ebca_session_params */
/* Size and number of the images that a session makes. */
typedef struct ebca_session_params {
    size_t struct_size;
    int32_t height; /* of the images, in pixels; 0: the size the model was trained at */
    int32_t width;
    int32_t batch; /* n, images per call (default 1) */
} ebca_session_params;
/* end */

EBCA_API void ebca_session_params_init(ebca_session_params* params, size_t struct_size);

/* Owns the buffers for images of one size. params: NULL: defaults. */
EBCA_API ebca_status ebca_session_create(ebca_engine* engine, const ebca_session_params* params,
                                         ebca_session** session);

/* Not while a call runs, nor from its callbacks: this is not detected. */
EBCA_API void ebca_session_free(ebca_session* session);

/* The same for the last call of this session; valid until its next call. */
EBCA_API const char* ebca_session_last_error(const ebca_session* session);
EBCA_API const char* ebca_session_last_problem(const ebca_session* session);
EBCA_API const char* ebca_session_last_remedy(const ebca_session* session);

/* Stop the call that is running as soon as possible, from any thread or callback: it returns EBCA_ERROR_CANCELLED. On a
 * CPU that takes less than one UNet evaluation, and it works at every stage: encoding texts and images, evaluations,
 * decoding. If no call is running, the next one is cancelled at once, so that a request made just before a call is not
 * lost. A call that ends for any reason takes the request with it. On a GPU all evaluations are one launch, which
 * cannot be stopped: set on_step to cancel between them. */
EBCA_API ebca_status ebca_session_cancel(ebca_session* session);

/* Forget a request that no call has taken yet. A host that starts and cancels its work in one thread calls this when it
 * starts something: what it cancels afterwards is meant for that. */
EBCA_API ebca_status ebca_session_reset_cancel(ebca_session* session);

/* ---- what a generation takes ------------------------------------------------------------------------------------ */

/* from runtime/schema/schema.toml: ebca_memory */
typedef enum ebca_memory {
    EBCA_MEMORY_HOST = 0,
    EBCA_MEMORY_CUDA = 1,
} ebca_memory;

/* EBCA_MEMORY_CUDA is "cuda"; another value is "unknown". */
EBCA_API const char* ebca_memory_name(ebca_memory value);
EBCA_API ebca_status ebca_memory_from_name(const char* name, ebca_memory* value);
/* end */

/* from runtime/schema/schema.toml: ebca_tensor */
/* float32 values; data NULL: not given. EBCA_MEMORY_CUDA, for an engine on a GPU: an address on that GPU. Its values
 * are there already, or will be when the work enqueued on the engine's cuda_stream is done. */
typedef struct ebca_tensor {
    const float* data;
    int64_t shape[4]; /* the first `rank` entries count */
    int32_t rank;
    int32_t memory;       /* ebca_memory */
    uint64_t reserved[2]; /* zero */
} ebca_tensor;
/* end */

/* from runtime/schema/schema.toml: ebca_prompt */
/* Texts, one for all images or one each, or embeddings [n or 1,T,D] instead. */
typedef struct ebca_prompt {
    const char* const* texts; /* UTF-8 */
    size_t count;
    ebca_tensor embeds;
    uint64_t reserved[2]; /* zero */
} ebca_prompt;
/* end */

/* from runtime/schema/schema.toml: ebca_schedule_kind */
typedef enum ebca_schedule_kind {
    EBCA_SCHEDULE_CONSTANT = 0,     /* value at every evaluation */
    EBCA_SCHEDULE_STEP = 1,         /* 0, then value once the share `parameter` (tau) of the steps is done */
    EBCA_SCHEDULE_REVERSE_STEP = 2, /* value, then 0 once that share is done */
    EBCA_SCHEDULE_LINEAR = 3,       /* value + parameter i */
    EBCA_SCHEDULE_EXPONENTIAL = 4,  /* value parameter^i */
    EBCA_SCHEDULE_VALUES = 5,       /* values[i], one per evaluation (RePaint: per step) */
} ebca_schedule_kind;

/* EBCA_SCHEDULE_VALUES is "values"; another value is "unknown". */
EBCA_API const char* ebca_schedule_kind_name(ebca_schedule_kind value);
EBCA_API ebca_status ebca_schedule_kind_from_name(const char* name, ebca_schedule_kind* value);
/* end */

/* from runtime/schema/schema.toml: ebca_schedule */
/* A number per evaluation. For constant values set `value`; for EBCA_SCHEDULE_VALUES, `values` and `count`. */
typedef struct ebca_schedule {
    int32_t kind; /* ebca_schedule_kind */
    double value;
    double parameter;
    const double* values;
    size_t count;
    uint64_t reserved[2]; /* zero */
} ebca_schedule;
/* end */

/* from runtime/schema/schema.toml: ebca_token_weight */
/* Factor of gamma_attn on the conditional rows: for every token of a word or phrase of the prompt, or, if `word` is
 * NULL, for one position. */
typedef struct ebca_token_weight {
    const char* word;
    int64_t position;
    double factor;
    uint64_t reserved[2]; /* zero */
} ebca_token_weight;
/* end */

/* from runtime/schema/schema.toml: ebca_edit */
/* An editing prompt. Its attention output joins the main prompt's as (main + sum of +-alpha edit) / (1 + sum of
 * +-alpha). */
typedef struct ebca_edit {
    size_t struct_size;
    ebca_prompt prompt;
    int32_t direction;        /* 1 adds what the prompt says (conjunction), 0 takes it away (negation) (default 1) */
    ebca_schedule alpha;      /* its weight, not negative (default 1) */
    ebca_schedule gamma_attn; /* step sizes of the update of this prompt's own context */
    ebca_schedule gamma_norm;
} ebca_edit;
/* end */

EBCA_API void ebca_edit_init(ebca_edit* edit, size_t struct_size);

/* from runtime/schema/schema.toml: ebca_image */
/* Pixels [height,width,channels] without gaps: 1 (grey), 3 (RGB) or 4 channels (alpha last). */
typedef struct ebca_image {
    const uint8_t* pixels;
    int32_t height;
    int32_t width;
    int32_t channels;
    uint64_t reserved[2]; /* zero */
} ebca_image;
/* end */

/* from runtime/schema/schema.toml: ebca_region */
/* Where a subject belongs. Its phrase is a subject of every prompt that has it, even if `subjects` does not name it. */
typedef struct ebca_region {
    const char* subject;  /* a phrase of the prompt (UTF-8) */
    ebca_image mask;      /* white where it belongs, with the aspect ratio of the images */
    uint64_t reserved[2]; /* zero */
} ebca_region;
/* end */

/* from runtime/schema/schema.toml: ebca_repaint_params */
/* Settings of RePaint, which inpaints with a model that was not trained for it. */
typedef struct ebca_repaint_params {
    size_t struct_size;
    int32_t jump_length;  /* steps that a jump goes back (default 10) */
    int32_t jump_count;   /* how often each stretch is denoised; 1: no jumps (default 10) */
    double eta;           /* 0 as the authors use it, 1 for the paper's random steps */
    int32_t update_known; /* 1: the context update uses the region that is kept, as the authors' code does by mistake */
} ebca_repaint_params;
/* end */

EBCA_API void ebca_repaint_params_init(ebca_repaint_params* params, size_t struct_size);

/* from runtime/schema/schema.toml: ebca_step_info */
/* State after one evaluation. Arrays belong to the session and are valid only during the callback. */
typedef struct ebca_step_info {
    size_t struct_size;
    int64_t index; /* of the evaluation, from 0 */
    int64_t total; /* number of evaluations */
    double timestep;
    ebca_tensor latents;  /* [n,C,h,w] */
    ebca_tensor contexts; /* [B,S,T,D] after the last layer; the first half of the rows is unconditional */
    double unit_scale;    /* The latents times this are as the UNet takes them next, of about unit variance with
                             every scheduler; 1 after the last evaluation. */
} ebca_step_info;
/* end */

/* After each evaluation; 0 cancels. */
typedef int (*ebca_step_callback)(const ebca_step_info* info, void* user_data);

/* from runtime/schema/schema.toml: ebca_size_conditions */
/* For Stable Diffusion XL: the sizes, in pixels, that its UNet is told. A size of 0 x 0 is that of the images. */
typedef struct ebca_size_conditions {
    int32_t original_height; /* of the image before it was cropped and resized: small ones look as if enlarged */
    int32_t original_width;
    int32_t crop_top; /* where the crop began: 0, 0 centres what the images show */
    int32_t crop_left;
    int32_t target_height;
    int32_t target_width;
    uint64_t reserved[2]; /* zero */
} ebca_size_conditions;
/* end */

/* from runtime/schema/schema.toml: ebca_generate_params */
/* Without images: text to image. With images: image to image. With masks too: inpainting, by the model if it was
 * trained for that, by RePaint otherwise. */
typedef struct ebca_generate_params {
    size_t struct_size;
    ebca_prompt prompt;
    ebca_prompt negative_prompt; /* of the unconditional half; not given: "" */
    int32_t steps;               /* of the scheduler; -1: the engine's default, 50 unless its checkpoint was
                                    distilled to fewer (default -1) */
    double guidance_scale;       /* 1 or less: conditional half only; NaN: the engine's default */
    const char* scheduler;       /* One of the engine's, such as "euler_ancestral" or "dpmpp_2m_karras". NULL: the
                                    engine's default, the checkpoint's own; for image to image with strength below 1
                                    "ddim", if the default cannot start at an intermediate timestep. */
    const int64_t* seeds;        /* Initial latents are those of torch.randn on the CPU; one seed for all images or
                                    one each. */
    size_t seed_count;           /* 0: random */
    ebca_schedule gamma_attn;    /* step sizes of the context update */
    ebca_schedule gamma_norm;
    const ebca_token_weight* token_weights;
    size_t token_weight_count;
    double norm_factor; /* 1 as in the authors' code, 0.5 as in the paper (default 1) */
    const ebca_edit* edits;
    size_t edit_count;
    int32_t reset_edits;      /* 1: every evaluation starts from the embeddings of the editing prompts */
    const ebca_image* images; /* One for all images of the batch or one each; resized to the session's size.
                                 Transparent pixels are composited on white, with a warning. */
    size_t image_count;
    const ebca_image* masks; /* White pixels are regenerated, or transparent ones in a mask with one colour. Pixels
                                of only 0 and 1 are black and white. */
    size_t mask_count;
    double strength;                    /* of image to image, above 0 to 1; NaN: 0.8 */
    const ebca_repaint_params* repaint; /* NULL: defaults */
    int32_t composite;                  /* 1: the pixels of the image are put back outside the mask (default 1) */
    ebca_tensor latents;                /* Initial latents [n,C,h,w] of unit variance instead of a seed, or what
                                           ebca_session_invert found. */
    int32_t latents_only;               /* 1: latents, no images */
    ebca_step_callback on_step;         /* NULL: none */
    void* on_step_data;
    const char* const* subjects;     /* Phrases (UTF-8), each of which gets a place of its own. Every prompt has all
                                        of them; none is found automatically. */
    size_t subject_count;            /* 0: off */
    ebca_schedule subject_exclusion; /* how strongly a subject is kept inside its place, 0 to 1000 (default 2) */
    ebca_schedule subject_balance;   /* how strongly one is supported that attends less than the strongest, 0 to 1000
                                        (default 1.5) */
    double subject_window;           /* size of a place, in sides of the smaller side, 0.01 to 10 (default 0.15) */
    const ebca_region* regions;
    size_t region_count;
    int32_t prompt_weighting; /* 1: (word:1.3), (word), [word] and BREAK in texts are syntax; 0: they are words
                                 (default 1) */
    int32_t long_prompts;     /* 1: longer texts are encoded in chunks; 0: what does not fit is dropped, with a
                                 warning (default 1) */
    int32_t clip_skip;        /* layers of the text encoder that are left out at its end; 1: its last but one layer */
    int32_t record_energies;  /* 1: the energies of every evaluation and layer, on the CPU */
    int32_t record_attention; /* 1: the mean attention to each token, on the CPU */
    int32_t vae_tiling;       /* 1: images larger than the model's size are encoded and decoded in tiles, which takes
                                 less memory */
    /* For Stable Diffusion XL (ebca_engine_info::pooled_width is not 0): */
    ebca_prompt prompt_2;                      /* texts for its second text encoder; not given: those of prompt */
    ebca_prompt negative_prompt_2;             /* not given: those of negative_prompt */
    ebca_tensor pooled_prompt_embeds;          /* [n or 1,P], needed beside prompt.embeds */
    ebca_tensor negative_pooled_prompt_embeds; /* [n or 1,P], needed beside negative_prompt.embeds */
    ebca_size_conditions size_conditions;
    ebca_size_conditions negative_size_conditions; /* of the unconditional half; used if both sizes are given, else
                                                      it has those of size_conditions */
} ebca_generate_params;
/* end */

EBCA_API void ebca_generate_params_init(ebca_generate_params* params, size_t struct_size);

/* from runtime/schema/schema.toml: ebca_regularize_params */
/* Keeps the noise predictions of an inversion close to independent standard normal values (Parmar et al., 2023). */
typedef struct ebca_regularize_params {
    size_t struct_size;
    int32_t rounds;          /* how often both terms are applied (default 5) */
    int32_t rolls;           /* auto-correlation steps per round, each with shifts of its own (default 5) */
    double auto_correlation; /* step size of that term (default 20) */
    double kl;               /* step size of the divergence from a standard normal (default 20) */
    uint32_t seed;           /* of the shifts */
} ebca_regularize_params;
/* end */

EBCA_API void ebca_regularize_params_init(ebca_regularize_params* params, size_t struct_size);

/* from runtime/schema/schema.toml: ebca_invert_params */
/* Inversion starts from images, or from their latents. */
typedef struct ebca_invert_params {
    size_t struct_size;
    const ebca_image* images; /* one for all images of the batch or one each, or */
    size_t image_count;
    ebca_tensor latents;                      /* their latents [n,C,h,w], scaled as the UNet takes them */
    ebca_prompt prompt;                       /* what the images show */
    int32_t steps;                            /* of the scheduler; one evaluation less is run, as in the authors'
                                                 code (default 50) */
    const ebca_regularize_params* regularize; /* NULL: leave the noise predictions as they are */
    ebca_step_callback on_step;
    void* on_step_data;
    int32_t prompt_weighting; /* as in ebca_generate_params, as are the next two (default 1) */
    int32_t long_prompts;     /*  (default 1) */
    int32_t clip_skip;
    int32_t vae_tiling; /* as in ebca_generate_params */
    /* For Stable Diffusion XL, as in ebca_generate_params: */
    ebca_prompt prompt_2;
    ebca_tensor pooled_prompt_embeds;
    ebca_size_conditions size_conditions;
} ebca_invert_params;
/* end */

EBCA_API void ebca_invert_params_init(ebca_invert_params* params, size_t struct_size);

/* from runtime/schema/schema.toml: ebca_encode_prompt_params */
/* Texts to embeddings. */
typedef struct ebca_encode_prompt_params {
    size_t struct_size;
    const char* const* texts; /* UTF-8. All get as many tokens as the longest: encode prompt and negative prompt
                                 together. */
    size_t count;
    int32_t prompt_weighting; /* as in ebca_generate_params, as are the next two (default 1) */
    int32_t long_prompts;     /*  (default 1) */
    int32_t clip_skip;
    const char* const* texts_2; /* For Stable Diffusion XL: for its second text encoder, one for all texts or one
                                   each. NULL: the same texts. */
    size_t count_2;
} ebca_encode_prompt_params;
/* end */

EBCA_API void ebca_encode_prompt_params_init(ebca_encode_prompt_params* params, size_t struct_size);

/* from runtime/schema/schema.toml: ebca_encode_images_params */
/* Images to latents. */
typedef struct ebca_encode_images_params {
    size_t struct_size;
    const ebca_image* images; /* as in ebca_generate_params */
    size_t image_count;
    int32_t height; /* that they are resized to, in pixels; 0: the size the model was trained at */
    int32_t width;
    int32_t sample;       /* 0: the most likely latents, as inversion starts from; 1: a sample, as image to image
                             starts from */
    const int64_t* seeds; /* of the sample, one for all images or one each */
    size_t seed_count;    /* 0: random */
} ebca_encode_images_params;
/* end */

EBCA_API void ebca_encode_images_params_init(ebca_encode_images_params* params, size_t struct_size);

/* from runtime/schema/schema.toml: ebca_denoise_params */
/* One evaluation of the UNet, for hosts with samplers of their own. Letters: B rows, any number of them; with
 * guidance, the first half is unconditional. */
typedef struct ebca_denoise_params {
    size_t struct_size;
    ebca_tensor sample;      /* [B,channels,h,w] of the session's size: latents as the UNet takes them, and what else
                                it takes */
    const double* timesteps; /* one for all rows or one each */
    size_t timestep_count;
    ebca_tensor contexts; /* [B,S,T,D]; s = 0 is the main prompt */
    /* Of the context update; each may have fewer dimensions, or 1 instead of a size, as in numpy: */
    ebca_tensor gamma_attn;    /* [B,S,T]; not given: 0 */
    ebca_tensor gamma_norm;    /* [B,S]; not given: 0 */
    ebca_tensor weights;       /* [B,S]: 1 for the main context, +alpha or -alpha for an editing context; not given:
                                  1 */
    ebca_tensor mask;          /* [B or 1,1,h,w]: 1 where the main context is updated; not given: everywhere */
    double norm_factor;        /* as in ebca_generate_params (default 1) */
    int32_t tie_unconditional; /* 1: the editing contexts of each unconditional row are one vector (default 1) */
    int32_t rows_per_image;    /* with tie_unconditional: how many, one of which is conditional (default 2) */
    int32_t record_energies;   /* 1: the energies too, on the CPU */
    /* Needed for Stable Diffusion XL, and for no other UNet: */
    ebca_tensor text_embeds; /* [B,P], pooled embeddings */
    ebca_tensor time_ids;    /* [B,6]: the numbers of ebca_size_conditions in their order */
} ebca_denoise_params;
/* end */

EBCA_API void ebca_denoise_params_init(ebca_denoise_params* params, size_t struct_size);

/* ---- what it gives ---------------------------------------------------------------------------------------------- */

/* from runtime/schema/schema.toml: ebca_result */
/* What a call returns. Arrays and strings belong to the result. What a call does not make is 0 or NULL. */
typedef struct ebca_result {
    size_t struct_size;
    const char* task;      /* "text-to-image", "image-to-image", "inpainting", "repaint", "inversion"; NULL: a single
                              stage */
    const char* scheduler; /* that was used */
    int32_t image_count;   /* n */
    int32_t height;        /* in pixels */
    int32_t width;
    const uint8_t* pixels;      /* [n,height,width,3] RGB; NULL: none were made */
    int32_t memory;             /* ebca_memory of `pixels`; tensors say it themselves */
    ebca_tensor latents;        /* [n,C,h,w], scaled as the UNet takes them */
    size_t evaluations;         /* m */
    const double* timesteps;    /* [m] */
    const double* unet_seconds; /* [m], per evaluation */
    double text_encoder_seconds;
    double vae_encoder_seconds;
    double open_seconds;
    double scheduler_seconds;
    double vae_seconds;
    const int64_t* seeds; /* that were used */
    size_t seed_count;
    ebca_tensor embeds;             /* [n,T,D], what ebca_prompt takes */
    ebca_tensor noise;              /* [B,C,h,w], the prediction of ebca_session_denoise */
    ebca_tensor contexts;           /* [B,S,T,D] after the last layer */
    ebca_tensor attention_energies; /* [m,L,B,S] of the L cross-attention layers: mean over heads of the sum over
                                       tokens of -logsumexp over positions; the last rows, one per image, are
                                       conditional */
    ebca_tensor norm_energies;      /* [m,L,B,S]: logsumexp over tokens of half the squared norm of the keys */
    ebca_tensor attention_maps;     /* [n,T,h,w]: the mean probability over heads, layers and evaluations; at each
                                       position the values of all tokens sum to 1 */
    ebca_tensor pooled_embeds;      /* [n,P] of ebca_engine_encode_prompt, for Stable Diffusion XL */
} ebca_result;
/* end */

/* Make images. */
EBCA_API ebca_status ebca_session_generate(ebca_session* session, const ebca_generate_params* params,
                                           ebca_result** result);

/* Find the noise that images come from (DDIM inversion, no guidance, no context update): result->latents. Generating
 * from them with scheduler "ddim", as many steps and the same prompt reproduces the images. */
EBCA_API ebca_status ebca_session_invert(ebca_session* session, const ebca_invert_params* params, ebca_result** result);

/* Evaluate the UNet once: result->noise, result->contexts. Buffers are kept for the numbers of rows, contexts and
 * tokens that were used last. */
EBCA_API ebca_status ebca_session_denoise(ebca_session* session, const ebca_denoise_params* params,
                                          ebca_result** result);

/* Move pixels and tensors of a result to the GPU that an engine is open on, for hosts that go on there: their addresses
 * are then on that GPU, and their `memory` is EBCA_MEMORY_CUDA, so that they can be passed to the next call. The rest
 * stays on the host. A call computes its result on the host, so this is a copy of it: 0.8 MB for an image of 512 x 512.
 * If it fails, the result is as before. */
EBCA_API ebca_status ebca_result_to_gpu(ebca_result* result, ebca_engine* engine);

EBCA_API void ebca_result_free(ebca_result* result);

/* ---- single stages ----------------------------------------------------------------------------------------------
 *
 * For any thread at any time, also in a callback of a call that runs. */

/* Texts to result->embeds. */
EBCA_API ebca_status ebca_engine_encode_prompt(ebca_engine* engine, const ebca_encode_prompt_params* params,
                                               ebca_result** result);

/* Images to result->latents. */
EBCA_API ebca_status ebca_engine_encode_images(ebca_engine* engine, const ebca_encode_images_params* params,
                                               ebca_result** result);

/* Latents [n,C,h,w], scaled as the UNet takes them, of any number and size to result->pixels. */
EBCA_API ebca_status ebca_engine_decode(ebca_engine* engine, const ebca_tensor* latents, ebca_result** result);

/* The same in no time, as small images of one pixel per latent: weighted sums of the latents' channels, which show
 * composition and colours. scale: the latents are multiplied by it first; in on_step, info->unit_scale. The first call
 * of an engine takes longer: it decodes a few small images to find the weights. */
EBCA_API ebca_status ebca_engine_preview(ebca_engine* engine, const ebca_tensor* latents, double scale,
                                         ebca_result** result);

#ifdef __cplusplus
}
#endif

#endif
