// Many threads on one engine: images, progress, cancellations at random moments, handles freed in odd orders.
//
//     stress ENGINE_DIRECTORY THREADS IMAGES [STEPS]
//
// Every image that is made must equal, byte for byte, the one that a single thread made of that seed before. Prints
// what was made and how much memory it left behind; exits with 1 at the first error. sanitize.sh runs it.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ebca.h"

namespace {

constexpr int64_t kSeeds = 5;
constexpr auto kLongestWait = std::chrono::milliseconds(40);

[[noreturn]] void fail(const char* what, const char* why) {
    std::fprintf(stderr, "stress: %s: %s\n", what, why);
    std::_Exit(1);
}

void check(bool holds, const char* what) {
    if (!holds) fail(what, ebca_last_error());
}

// Memory of this process in MiB: now, and at its peak.
double mebibytes(const char* name) {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
        double value = 0;
        if (word == name && status >> value) return value / 1024;
    }
    return 0;
}

struct Image {
    std::vector<uint8_t> pixels;
    std::vector<float> latents;
    bool operator==(const Image& other) const { return pixels == other.pixels && latents == other.latents; }
};

ebca_image grey(const std::vector<uint8_t>& pixels, int32_t side) {
    ebca_image image{};
    image.pixels = pixels.data();
    image.height = image.width = side;
    image.channels = 1;
    return image;
}

ebca_tensor tensor(const float* data, std::initializer_list<int64_t> shape) {
    ebca_tensor made{};
    made.data = data;
    made.rank = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), made.shape);
    return made;
}

std::vector<uint8_t> half_white(size_t side) {
    std::vector<uint8_t> pixels(side * side);
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = i % side < side / 2 ? 255 : 0;
    return pixels;
}

struct Progress {
    int64_t next = 0;
    ebca_session* session = nullptr;
    std::atomic<int64_t> reached{0};  // evaluations
    ebca_engine* engine = nullptr;    // for previews; null: none
    bool calls_again = false;
    int cancel_at = -1;  // 0 from the callback at this evaluation
};

// A preview of the latents that a callback sees.
void look_at(ebca_engine* engine, const ebca_step_info& info) {
    ebca_result* result = nullptr;
    check(ebca_engine_preview(engine, &info.latents, info.unit_scale, &result) == EBCA_OK, "latents are shown");
    check(result->pixels && result->height == info.latents.shape[2] && !result->task, "a preview is an image");
    ebca_result_free(result);
}

// Single stages, beside a session of the same engine.
void run_stages(ebca_engine* engine) {
    ebca_encode_prompt_params prompt;
    ebca_encode_prompt_params_init(&prompt, sizeof prompt);
    const char* const texts[] = {"a red circle", ""};
    prompt.texts = texts;
    prompt.count = 2;
    ebca_result* embeds = nullptr;
    check(ebca_engine_encode_prompt(engine, &prompt, &embeds) == EBCA_OK, "texts are encoded");
    check(embeds->embeds.rank == 3 && embeds->embeds.shape[0] == 2, "each text has embeddings");
    ebca_encode_images_params images;
    ebca_encode_images_params_init(&images, sizeof images);
    const std::vector<uint8_t> left = half_white(64);
    const ebca_image image = grey(left, 64);
    images.images = &image;
    images.image_count = 1;
    ebca_result *latents = nullptr, *pixels = nullptr;
    check(ebca_engine_encode_images(engine, &images, &latents) == EBCA_OK, "images are encoded");
    check(ebca_engine_decode(engine, &latents->latents, &pixels) == EBCA_OK, "latents are decoded");
    check(pixels->height == 64 && pixels->width == 64, "the decoded image has the size of the encoded one");
    for (ebca_result* result : {embeds, latents, pixels}) ebca_result_free(result);
}

// One evaluation twice, which must be the same.
void denoise(ebca_session* session, const ebca_engine_info& info) {
    const int64_t side = info.height / info.downscale;
    const std::vector<float> sample(static_cast<size_t>(2 * info.latent_channels * side * side), 0.5f);
    const std::vector<float> contexts(static_cast<size_t>(2 * info.max_tokens * info.context_width), 0.25f);
    const double timestep = 500;
    const float gamma = 0.01f;
    ebca_denoise_params ask;
    ebca_denoise_params_init(&ask, sizeof ask);
    ask.sample = tensor(sample.data(), {2, info.latent_channels, side, side});
    ask.contexts = tensor(contexts.data(), {2, 1, info.max_tokens, info.context_width});
    ask.timesteps = &timestep;
    ask.timestep_count = 1;
    ask.gamma_norm = tensor(&gamma, {1});
    ask.record_energies = 1;
    ebca_result* made[2] = {};
    for (ebca_result*& one : made) check(ebca_session_denoise(session, &ask, &one) == EBCA_OK, "the UNet is evaluated");
    int differ = std::memcmp(made[0]->noise.data, made[1]->noise.data, sample.size() * sizeof(float));
    check(!differ, "evaluations are equal");
    for (ebca_result* one : made) ebca_result_free(one);
}

int on_step(const ebca_step_info* info, void* data) {
    auto* progress = static_cast<Progress*>(data);
    progress->reached = info->index + 1;
    check(info->index == progress->next++, "progress comes in order");
    double sum = 0;
    for (int64_t i = 0; i < info->latents.shape[0] * info->latents.shape[1]; ++i) sum += info->latents.data[i];
    check(sum == sum, "latents are numbers");
    if (progress->engine) look_at(progress->engine, *info);
    if (progress->calls_again) {
        ebca_generate_params make;
        ebca_generate_params_init(&make, sizeof make);
        ebca_result* result = nullptr;
        check(ebca_session_generate(progress->session, &make, &result) == EBCA_ERROR_PARAMETER && !result,
              "a call from a callback is refused");
    }
    return info->index != progress->cancel_at;
}

void on_log(ebca_log_level, const char* message, void* data) {
    check(message != nullptr, "messages are texts");
    ++*static_cast<std::atomic<int>*>(data);
}

class Stress {
  public:
    Stress(const char* path, int steps) : path_(path), steps_(steps) {
        engine_ = new_engine();
        for (int64_t seed = 0; seed < kSeeds; ++seed) {
            ebca_session* session = new_session();
            expected_[seed] = *make(session, seed, nullptr);
            ebca_session_free(session);
        }
    }

    // The engine is freed while sessions live on.
    void free_engine() {
        ebca_engine_free(engine_);
        engine_ = nullptr;
    }

    ebca_session* new_session() { return new_session(engine_); }

    // Engines of the same directory are opened and freed meanwhile: they map and unmap the same files.
    void open_and_close(const std::atomic<bool>& done) {
        for (; !done; ++opened_) {
            ebca_engine* engine = new_engine();
            ebca_session* session = new_session(engine);
            Progress progress;
            progress.session = session;
            progress.engine = engine;
            std::thread other([engine] { run_stages(engine); });
            std::unique_ptr<Image> made = make(session, 2, &progress);
            other.join();
            ebca_engine_info info;
            info.struct_size = sizeof info;
            check(ebca_engine_get_info(engine, &info) == EBCA_OK, "an engine says what it is");
            denoise(session, info);
            if (!made || !(*made == expected_.at(2))) fail("an image with previews", "is not the one without");
            ebca_engine_free(engine);
            check(make(session, 1, nullptr) != nullptr, "a session of a freed engine makes an image");
            ebca_session_free(session);
        }
        free_results();
    }

    // One thread's work: images on two sessions, which are replaced now and then while the engine is open.
    void work(unsigned number, int images) {
        std::mt19937 random(number);
        auto chance = [&](unsigned of) { return random() % of == 0; };
        std::vector<ebca_session*> sessions{new_session(), new_session()};
        ready_.fetch_add(1);
        for (int i = 0; i < images; ++i) {
            ebca_session*& session = sessions[random() % sessions.size()];
            auto seed = static_cast<int64_t>(random() % kSeeds);
            Progress progress;
            progress.session = session;
            progress.calls_again = chance(4);
            if (chance(4)) progress.cancel_at = static_cast<int>(random() % static_cast<unsigned>(steps_));
            std::thread other;
            bool cancelling = chance(3);
            if (cancelling) {
                auto wait = std::chrono::microseconds(random() % std::chrono::microseconds(kLongestWait).count());
                other = std::thread([session, wait] {
                    std::this_thread::sleep_for(wait);
                    check(ebca_session_cancel(session) == EBCA_OK, "a session is cancelled");
                });
            }
            std::unique_ptr<Image> made = make(session, seed, &progress);
            if (other.joinable()) other.join();
            // It may have come too late for this call.
            check(ebca_session_reset_cancel(session) == EBCA_OK, "a request is forgotten");
            check(made || cancelling || progress.cancel_at >= 0, "only what was cancelled stops");
            check(!made || progress.cancel_at < 0, "what a callback cancels stops");
            if (made && !(*made == expected_.at(seed))) fail("an image", "is not the one that a single thread made");
            (made ? made_ : cancelled_).fetch_add(1);
            if (chance(5)) refused_call(session);
            if (chance(4)) cancelled_before(session);
            if (chance(3)) cancelled_at_a_stage(session, random() % 3, random);
        }
        if (number % 2) std::swap(sessions[0], sessions[1]);
        for (ebca_session* session : sessions) ebca_session_free(session);
        free_results();
    }

    int ready() const { return ready_; }
    int opened() const { return opened_; }
    int made() const { return made_; }
    int cancelled() const { return cancelled_; }
    int logged() const { return logged_; }

  private:
    ebca_engine* new_engine() {
        ebca_engine_params open;
        ebca_engine_params_init(&open, sizeof open);
        open.path = path_;
        open.threads = 1;
        open.log = on_log;
        open.log_data = &logged_;
        ebca_engine* engine = nullptr;
        check(ebca_engine_open(&open, &engine) == EBCA_OK, "the engine opens");
        return engine;
    }

    static ebca_session* new_session(ebca_engine* engine) {
        ebca_session* session = nullptr;
        check(ebca_session_create(engine, nullptr, &session) == EBCA_OK, "a session is created");
        return session;
    }

    // Those of freed sessions and engines too: they are the caller's.
    void free_results() {
        std::vector<ebca_result*> results;
        {
            std::lock_guard held(lock_);
            results.swap(results_);
        }
        for (ebca_result* result : results) ebca_result_free(result);
    }

    // A request that comes before the call.
    void cancelled_before(ebca_session* session) {
        check(ebca_session_cancel(session) == EBCA_OK, "a session is cancelled");
        check(!make(session, 0, nullptr), "a call that was cancelled before makes nothing");
    }

    // Another thread cancels while images are encoded (0), while latents are sampled (1), or while images are decoded.
    void cancelled_at_a_stage(ebca_session* session, unsigned stage, std::mt19937& random) {
        const std::vector<uint8_t> pixels = half_white(64);
        const ebca_image image = grey(pixels, 64);
        const char* prompt = "a red circle";
        ebca_generate_params params;
        ebca_generate_params_init(&params, sizeof params);
        params.prompt.texts = &prompt;
        params.prompt.count = 1;
        params.steps = steps_;
        params.scheduler = "ddim";
        params.strength = stage == 0 ? 1.0 : params.strength;
        params.images = stage == 0 ? &image : nullptr;
        params.image_count = stage == 0 ? 1 : 0;
        Progress progress;
        progress.session = session;
        params.on_step = on_step;
        params.on_step_data = &progress;
        const int64_t last = stage == 2 ? steps_ : 1;
        auto wait = std::chrono::microseconds(random() % 3000);
        std::atomic<bool> ended{false};
        std::thread other([&, session] {
            while (stage != 0 && progress.reached < last && !ended) std::this_thread::yield();
            std::this_thread::sleep_for(wait);
            check(ebca_session_cancel(session) == EBCA_OK, "a session is cancelled");
        });
        ebca_result* result = nullptr;
        ebca_status status = ebca_session_generate(session, &params, &result);
        ended = true;
        other.join();
        check(ebca_session_reset_cancel(session) == EBCA_OK, "a request is forgotten");
        check(status == EBCA_OK || status == EBCA_ERROR_CANCELLED, "a call ends, or is cancelled");
        check((status == EBCA_OK) == (result != nullptr), "only a call that ends has a result");
        ebca_result_free(result);
    }

    void refused_call(ebca_session* session) {
        ebca_generate_params params;
        ebca_generate_params_init(&params, sizeof params);
        params.steps = -1;
        ebca_result* result = nullptr;
        check(ebca_session_generate(session, &params, &result) == EBCA_ERROR_PARAMETER && !result, "no steps: refused");
        check(std::strlen(ebca_session_last_error(session)) > 0, "an error has a text");
    }

    // Null if it was cancelled. Every third result is kept, for another thread to free.
    std::unique_ptr<Image> make(ebca_session* session, int64_t seed, Progress* progress) {
        ebca_generate_params params;
        ebca_generate_params_init(&params, sizeof params);
        // Longer than the engine takes, so that there is something to log.
        const std::string long_prompt = "a red circle and a blue square" + std::string(seed == 0 ? 100 : 0, '!');
        const char* prompt = long_prompt.c_str();
        params.prompt.texts = &prompt;
        params.prompt.count = 1;
        params.steps = steps_;
        params.seeds = &seed;
        params.seed_count = 1;
        params.scheduler = "ddim";
        params.gamma_attn.value = seed % 2 ? 0.01 : 0.0;
        params.record_energies = params.record_attention = seed == 3;
        const char* change = "a green triangle";
        ebca_edit edit;
        ebca_edit_init(&edit, sizeof edit);
        edit.prompt.texts = &change;
        edit.prompt.count = 1;
        edit.alpha.value = 0.5;
        if (seed % 3 == 2) {
            params.edits = &edit;
            params.edit_count = 1;
        }
        // Two subjects, the first of them in the left half.
        const char* const subjects[] = {"red circle", "blue square"};
        const std::vector<uint8_t> left = half_white(64);
        ebca_region region{};
        region.subject = subjects[0];
        region.mask.pixels = left.data();
        region.mask.height = region.mask.width = 64;
        region.mask.channels = 1;
        if (seed % 3 == 1) {
            params.subjects = subjects;
            params.subject_count = 2;
            params.regions = &region;
            params.region_count = 1;
        }
        if (progress) {
            params.on_step = on_step;
            params.on_step_data = progress;
        }
        ebca_result* result = nullptr;
        ebca_status status = ebca_session_generate(session, &params, &result);
        if (status == EBCA_ERROR_CANCELLED) {
            check(!result, "what is cancelled has no result");
            return nullptr;
        }
        check(status == EBCA_OK, "an image is made");
        auto made = std::make_unique<Image>();
        size_t pixels = static_cast<size_t>(result->height) * static_cast<size_t>(result->width) * 3;
        size_t values = 1;
        for (int64_t size : result->latents.shape) values *= static_cast<size_t>(size);
        made->pixels.assign(result->pixels, result->pixels + pixels);
        made->latents.assign(result->latents.data, result->latents.data + values);
        std::lock_guard held(lock_);
        if (++results_seen_ % 3) {
            ebca_result_free(result);
        } else {
            results_.push_back(result);
        }
        return made;
    }

    const char* path_;
    int steps_;
    ebca_engine* engine_ = nullptr;
    std::map<int64_t, Image> expected_;
    std::mutex lock_;
    std::vector<ebca_result*> results_;
    size_t results_seen_ = 0;
    std::atomic<int> ready_{0}, made_{0}, cancelled_{0}, logged_{0}, opened_{0};
};

}  // namespace

int main(int count, char** arguments) {
    if (count < 4) {
        std::fprintf(stderr, "usage: stress ENGINE_DIRECTORY THREADS IMAGES [STEPS]\n");
        return 2;
    }
    int threads = std::atoi(arguments[2]), images = std::atoi(arguments[3]);
    Stress stress(arguments[1], count > 4 ? std::atoi(arguments[4]) : 3);
    double first = mebibytes("VmRSS:");
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i) {
        workers.emplace_back([&stress, i, images] { stress.work(static_cast<unsigned>(i), images); });
    }
    while (stress.ready() < threads) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    stress.free_engine();
    std::atomic<bool> done{false};
    std::thread other([&] { stress.open_and_close(done); });
    for (std::thread& worker : workers) worker.join();
    done = true;
    other.join();
    std::printf("%d images equal, %d cancelled, %d messages, %d engines; ", stress.made(), stress.cancelled(),
                stress.logged(), stress.opened());
    std::printf("%.0f MiB after the first, %.0f at the end, %.0f at most\n", first, mebibytes("VmRSS:"),
                mebibytes("VmHWM:"));
}
