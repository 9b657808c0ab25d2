// Thin RAII over ebca.h, which describes everything: handles that free themselves, statuses that are thrown.
//
//     ebca::Engine engine("engine-sd15");
//     ebca::Session session(engine);
//     ebca::Text prompt("a lion with a crown");
//     ebca::GenerateParams make;
//     make.prompt = prompt;
//     make.gamma_attn = ebca::reverse_step(0.01, 0.5);
//     ebca::Result result = session.generate(make);       result->pixels
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ebca.h"

namespace ebca {

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

inline void check(ebca_status status) {
    if (status != EBCA_OK) throw Error(status, ebca_last_problem(), ebca_last_remedy());
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
    EngineParams() { ebca_engine_params_init(this, sizeof *this); }
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

// Texts that outlive the calls they are passed to: one for all images or one each.
class Text {
  public:
    explicit Text(std::string text) : Text(std::vector<std::string>{std::move(text)}) {}
    explicit Text(std::vector<std::string> texts) : texts_(std::move(texts)) {
        for (const std::string& text : texts_) pointers_.push_back(text.c_str());
    }
    Text(const Text&) = delete;
    Text& operator=(const Text&) = delete;
    operator ebca_prompt() const { return {pointers_.data(), pointers_.size(), {}}; }
    // As the phrases of ebca_generate_params::subjects.
    const char* const* data() const { return pointers_.data(); }
    size_t size() const { return pointers_.size(); }

  private:
    std::vector<std::string> texts_;
    std::vector<const char*> pointers_;
};

inline ebca_schedule constant(double value) {
    return {EBCA_SCHEDULE_CONSTANT, value, 0, nullptr, 0};
}
inline ebca_schedule step(double value, double tau) {
    return {EBCA_SCHEDULE_STEP, value, tau, nullptr, 0};
}
inline ebca_schedule reverse_step(double value, double tau) {
    return {EBCA_SCHEDULE_REVERSE_STEP, value, tau, nullptr, 0};
}
inline ebca_schedule linear(double value, double ratio) {
    return {EBCA_SCHEDULE_LINEAR, value, ratio, nullptr, 0};
}
inline ebca_schedule exponential(double value, double ratio) {
    return {EBCA_SCHEDULE_EXPONENTIAL, value, ratio, nullptr, 0};
}
// The vector must outlive the call.
inline ebca_schedule values(const std::vector<double>& each) {
    return {EBCA_SCHEDULE_VALUES, 0, 0, each.data(), each.size()};
}

using Result = std::unique_ptr<ebca_result, decltype(&ebca_result_free)>;

// False cancels. What it throws cancels too, and is thrown again by the call.
using OnStep = std::function<bool(const ebca_step_info&)>;

class Engine {
  public:
    explicit Engine(const ebca_engine_params& params) : handle_(nullptr, ebca_engine_free) {
        ebca_engine* engine = nullptr;
        check(ebca_engine_open(&params, &engine));
        handle_.reset(engine);
    }
    explicit Engine(const std::string& path) : Engine(named(path)) {}

    ebca_engine_info info() const {
        ebca_engine_info info{};
        info.struct_size = sizeof info;
        check(ebca_engine_get_info(handle_.get(), &info));
        return info;
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
    ebca_engine* get() const { return handle_.get(); }

  private:
    template <typename Call, typename... Arguments>
    Result run(Call call, Arguments... arguments) const {
        ebca_result* result = nullptr;
        check(call(handle_.get(), arguments..., &result));
        return Result(result, ebca_result_free);
    }

    static EngineParams named(const std::string& path) {
        EngineParams params;
        params.path = path.c_str();
        return params;
    }

    std::unique_ptr<ebca_engine, decltype(&ebca_engine_free)> handle_;
};

class Session {
  public:
    explicit Session(const Engine& engine, const ebca_session_params& params = SessionParams())
        : handle_(nullptr, ebca_session_free) {
        ebca_session* session = nullptr;
        check(ebca_session_create(engine.get(), &params, &session));
        handle_.reset(session);
    }

    Result generate(ebca_generate_params params, const OnStep& on_step = {}) {
        return run(ebca_session_generate, params, on_step);
    }
    Result invert(ebca_invert_params params, const OnStep& on_step = {}) {
        return run(ebca_session_invert, params, on_step);
    }
    Result denoise(const ebca_denoise_params& params) {
        ebca_result* result = nullptr;
        check(ebca_session_denoise(handle_.get(), &params, &result));
        return Result(result, ebca_result_free);
    }
    // From any thread.
    void cancel() { check(ebca_session_cancel(handle_.get())); }
    ebca_session* get() const { return handle_.get(); }

  private:
    struct Watcher {
        const OnStep& on_step;
        std::exception_ptr thrown;
    };

    static int watch(const ebca_step_info* info, void* data) {
        auto* watcher = static_cast<Watcher*>(data);
        try {
            return watcher->on_step(*info);
        } catch (...) {
            watcher->thrown = std::current_exception();
            return 0;
        }
    }

    template <typename Call, typename Params>
    Result run(Call call, Params& params, const OnStep& on_step) {
        Watcher watcher{on_step, nullptr};
        if (on_step) {
            params.on_step = watch;
            params.on_step_data = &watcher;
        }
        ebca_result* result = nullptr;
        ebca_status status = call(handle_.get(), &params, &result);
        if (watcher.thrown) std::rethrow_exception(watcher.thrown);
        check(status);
        return Result(result, ebca_result_free);
    }

    std::unique_ptr<ebca_session, decltype(&ebca_session_free)> handle_;
};

}  // namespace ebca
