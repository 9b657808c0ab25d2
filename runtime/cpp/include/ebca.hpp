// Thin RAII over ebca.h, which describes everything: handles that free themselves, statuses that are thrown as
// ebca::Error.
//
//     ebca::Engine engine("engine-sd15");
//     ebca::Session session(engine);
//     ebca::Text prompt("a lion with a crown");
//     ebca::GenerateParams make;
//     make.prompt = prompt;
//     make.gamma_attn = ebca::reverse_step(0.01, 0.5);
//     ebca::Result result = session.generate(make);       result->pixels
//
// An Engine, Session, Result or Text may be empty: by default, or after a move. Using an empty one is an error.
//
// With -fno-exceptions nothing is thrown. An object whose making failed is empty instead: `if (!engine)`. Its status()
// is that of the call, and ebca_last_error() says more. An empty result has no pixels; info() of an empty engine is 0.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ebca.h"

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define EBCA_EXCEPTIONS 1
namespace ebca {
#else
#define EBCA_EXCEPTIONS 0
namespace ebca {
// A namespace of its own, as a program may have objects of both kinds.
inline namespace without_exceptions {
#endif

// what() joins problem and remedy with "; ".
class Error : public std::runtime_error {
  public:
    Error(ebca_status status, const std::string& problem, const std::string& remedy)
        : std::runtime_error(remedy.empty() ? problem : problem + "; " + remedy),
          status_(status),
          problem_(problem),
          remedy_(remedy) {}
    ebca_status status() const { return status_; }
    // What is wrong: the thing and the value.
    const std::string& problem() const { return problem_; }
    // What to do about it; empty if nothing can be done, or if the problem says it.
    const std::string& remedy() const { return remedy_; }

  private:
    ebca_status status_;
    std::string problem_;
    std::string remedy_;
};

// Throws the last error of this thread, unless all went well; without exceptions, returns the status.
inline ebca_status check(ebca_status status) {
#if EBCA_EXCEPTIONS
    if (status != EBCA_OK) throw Error(status, ebca_last_problem(), ebca_last_remedy());
#endif
    return status;
}

// The CPU, then the GPUs.
inline std::vector<ebca_device_info> devices() {
    size_t count = 0;
    check(ebca_device_count(&count));
    std::vector<ebca_device_info> made(count);
    for (size_t i = 0; i < count; ++i) {
        made[i].struct_size = sizeof made[i];
        check(ebca_device_get_info(i, &made[i]));
    }
    return made;
}

// The C structs with their defaults.
struct EngineParams : ebca_engine_params {
    EngineParams() {
        ebca_engine_params_init(this, sizeof *this);
        abi_version = EBCA_ABI_VERSION;
    }
};
struct SessionParams : ebca_session_params {
    SessionParams() { ebca_session_params_init(this, sizeof *this); }
};
struct EditParams : ebca_edit {
    EditParams() { ebca_edit_init(this, sizeof *this); }
};
struct RePaintParams : ebca_repaint_params {
    RePaintParams() { ebca_repaint_params_init(this, sizeof *this); }
};
struct RegularizeParams : ebca_regularize_params {
    RegularizeParams() { ebca_regularize_params_init(this, sizeof *this); }
};
struct GenerateParams : ebca_generate_params {
    GenerateParams() { ebca_generate_params_init(this, sizeof *this); }
};
struct InvertParams : ebca_invert_params {
    InvertParams() { ebca_invert_params_init(this, sizeof *this); }
};
struct DenoiseParams : ebca_denoise_params {
    DenoiseParams() { ebca_denoise_params_init(this, sizeof *this); }
};
struct EncodePromptParams : ebca_encode_prompt_params {
    EncodePromptParams() { ebca_encode_prompt_params_init(this, sizeof *this); }
};
struct EncodeImagesParams : ebca_encode_images_params {
    EncodeImagesParams() { ebca_encode_images_params_init(this, sizeof *this); }
};

// Texts that outlive the calls they are passed to: one for all images or one each. A move leaves the texts where they
// are, so that prompts which were made before stay valid.
class Text {
  public:
    Text() = default;
    explicit Text(std::string text) : Text(std::vector<std::string>{std::move(text)}) {}
    explicit Text(std::vector<std::string> texts) : texts_(std::move(texts)) {
        for (const std::string& text : texts_) pointers_.push_back(text.c_str());
    }
    Text(const Text&) = delete;
    Text& operator=(const Text&) = delete;
    // Vectors hand over their memory, and with it short strings that hold their characters themselves.
    Text(Text&&) noexcept = default;
    Text& operator=(Text&& other) noexcept {
        Text taken(std::move(other));
        texts_.swap(taken.texts_);
        pointers_.swap(taken.pointers_);
        return *this;
    }
    ~Text() = default;

    // Not of a temporary: a prompt borrows.
    operator ebca_prompt() const& {
        ebca_prompt prompt{};
        prompt.texts = pointers_.data();
        prompt.count = pointers_.size();
        return prompt;
    }
    operator ebca_prompt() const&& = delete;
    // As the phrases of ebca_generate_params::subjects.
    const char* const* data() const& { return pointers_.data(); }
    const char* const* data() const&& = delete;
    size_t size() const { return pointers_.size(); }

  private:
    std::vector<std::string> texts_;
    std::vector<const char*> pointers_;
};

inline ebca_schedule schedule(ebca_schedule_kind kind, double value, double parameter) {
    ebca_schedule made{};
    made.kind = static_cast<int32_t>(kind);
    made.value = value;
    made.parameter = parameter;
    return made;
}
inline ebca_schedule constant(double value) {
    return schedule(EBCA_SCHEDULE_CONSTANT, value, 0);
}
inline ebca_schedule step(double value, double tau) {
    return schedule(EBCA_SCHEDULE_STEP, value, tau);
}
inline ebca_schedule reverse_step(double value, double tau) {
    return schedule(EBCA_SCHEDULE_REVERSE_STEP, value, tau);
}
inline ebca_schedule linear(double value, double ratio) {
    return schedule(EBCA_SCHEDULE_LINEAR, value, ratio);
}
inline ebca_schedule exponential(double value, double ratio) {
    return schedule(EBCA_SCHEDULE_EXPONENTIAL, value, ratio);
}
// The vector must outlive the call.
inline ebca_schedule values(const std::vector<double>& each) {
    ebca_schedule made = schedule(EBCA_SCHEDULE_VALUES, 0, 0);
    made.values = each.data();
    made.count = each.size();
    return made;
}
ebca_schedule values(const std::vector<double>&&) = delete;

// Owns what a function of ebca.h made, or nothing.
template <typename Made, void (*Free)(Made*)>
class Owner {
  public:
    Owner() = default;
    explicit operator bool() const { return made_ != nullptr; }
    Made* get() const { return made_.get(); }
    // Of the call that made it, or failed to.
    ebca_status status() const { return status_; }

  protected:
    void take(Made* made, ebca_status status) {
        made_.reset(made);
        status_ = status;
    }

  private:
    struct Deleter {
        void operator()(Made* made) const { Free(made); }
    };

    std::unique_ptr<Made, Deleter> made_;
    ebca_status status_ = EBCA_OK;
};

class Result : public Owner<ebca_result, ebca_result_free> {
  public:
    Result() = default;
    explicit Result(ebca_result* made, ebca_status status = EBCA_OK) { take(made, status); }

    const ebca_result& operator*() const {
        if (get()) return *get();
#if EBCA_EXCEPTIONS
        throw Error(EBCA_ERROR_PARAMETER, "the result is empty", "use the one that generate or invert returned");
#else
        static const ebca_result none{};
        return none;
#endif
    }
    const ebca_result* operator->() const {
        return &**this;
    }
};

// False cancels. What it throws cancels too, and is thrown again by the call.
using OnStep = std::function<bool(const ebca_step_info&)>;

class Engine : public Owner<ebca_engine, ebca_engine_free> {
  public:
    Engine() = default;
    explicit Engine(const ebca_engine_params& params) { open(params); }
    explicit Engine(const std::string& path) {
        EngineParams params;
        params.path = path.c_str();
        open(params);
    }

    ebca_engine_info info() const {
        ebca_engine_info found{};
        found.struct_size = sizeof found;
        check(ebca_engine_get_info(get(), &found));
        return found;
    }
    // Single stages, also for step callbacks.
    Result encode_prompt(const ebca_encode_prompt_params& params) const {
        return run(ebca_engine_encode_prompt, &params);
    }
    Result encode_images(const ebca_encode_images_params& params) const {
        return run(ebca_engine_encode_images, &params);
    }
    Result decode(const ebca_tensor& latents) const { return run(ebca_engine_decode, &latents); }
    Result preview(const ebca_tensor& latents, double scale = 1) const {
        return run(ebca_engine_preview, &latents, scale);
    }
    // Of any call of this engine or its sessions.
    ebca_status to_gpu(Result& result) const { return check(ebca_result_to_gpu(result.get(), get())); }

  private:
    template <typename Call, typename... Arguments>
    Result run(Call call, Arguments... arguments) const {
        ebca_result* result = nullptr;
        ebca_status status = check(call(get(), arguments..., &result));
        return Result(result, status);
    }
    void open(const ebca_engine_params& params) {
        ebca_engine* engine = nullptr;
        ebca_status status = check(ebca_engine_open(&params, &engine));
        take(engine, status);
    }
};

class Session : public Owner<ebca_session, ebca_session_free> {
  public:
    Session() = default;
    explicit Session(const Engine& engine, const ebca_session_params& params = SessionParams()) {
        ebca_session* session = nullptr;
        ebca_status status = check(ebca_session_create(engine.get(), &params, &session));
        take(session, status);
    }

    Result generate(ebca_generate_params params, const OnStep& on_step = {}) {
        return run(ebca_session_generate, params, on_step);
    }
    Result invert(ebca_invert_params params, const OnStep& on_step = {}) {
        return run(ebca_session_invert, params, on_step);
    }
    Result denoise(const ebca_denoise_params& params) {
        ebca_result* result = nullptr;
        ebca_status status = check(ebca_session_denoise(get(), &params, &result));
        return Result(result, status);
    }
    // From any thread: stops the call that runs, or else the next one.
    ebca_status cancel() { return check(ebca_session_cancel(get())); }
    // Forgets a cancel() that no call has taken yet.
    ebca_status reset_cancel() { return check(ebca_session_reset_cancel(get())); }

  private:
    struct Watcher {
        const OnStep& on_step;
        std::exception_ptr thrown;
    };

    static int watch(const ebca_step_info* info, void* data) {
        auto* watcher = static_cast<Watcher*>(data);
#if EBCA_EXCEPTIONS
        try {
            return watcher->on_step(*info);
        } catch (...) {
            watcher->thrown = std::current_exception();
            return 0;
        }
#else
        return watcher->on_step(*info);
#endif
    }

    template <typename Call, typename Params>
    Result run(Call call, Params& params, const OnStep& on_step) {
        Watcher watcher{on_step, nullptr};
        if (on_step) {
            params.on_step = watch;
            params.on_step_data = &watcher;
        }
        ebca_result* made = nullptr;
        ebca_status status = call(get(), &params, &made);
#if EBCA_EXCEPTIONS
        if (watcher.thrown) std::rethrow_exception(watcher.thrown);
#endif
        check(status);
        return Result(made, status);
    }
};

#if !EBCA_EXCEPTIONS
}  // namespace without_exceptions
#endif
}  // namespace ebca
