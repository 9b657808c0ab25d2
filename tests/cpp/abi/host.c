/* A host in C. It is compiled against the header of an earlier release too, and runs with this library.
 *     host ENGINE_DIRECTORY [FILE_FOR_PIXELS]
 */
#ifndef EBCA_HEADER
#define EBCA_HEADER <ebca.h>
#endif
#include EBCA_HEADER
#include <stdio.h>
#include <string.h>

static int fail(const char* what) {
    printf("%s: %s\n", what, ebca_last_error());
    return 1;
}

static int count_steps(const ebca_step_info* info, void* data) {
    *(int64_t*)data = info->index + 1;
    return info->struct_size >= sizeof *info;
}

int main(int count, char** arguments) {
    const char* texts[2] = {"a red circle", "a blue square"};
    const double gammas[3] = {0.0, 0.01, 0.0};
    int64_t seed = 3, steps = 0;
    ebca_engine_params open;
    ebca_engine_info info;
    ebca_session_params size;
    ebca_edit edits[2];
    ebca_token_weight weight;
    ebca_generate_params make;
    ebca_engine* engine;
    ebca_session* session;
    ebca_result* result;
    FILE* file;

    if (count < 2 || ebca_abi_version() != EBCA_ABI_VERSION) return fail("the binary interface");
    ebca_engine_params_init(&open, sizeof open);
    open.abi_version = EBCA_ABI_VERSION;
    open.path = arguments[1];
    if (ebca_engine_open(&open, &engine) != EBCA_OK) return fail("open");
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    if (ebca_engine_get_info(engine, &info) != EBCA_OK || !(info.tasks & EBCA_TASK_EDITING)) return fail("info");
    ebca_session_params_init(&size, sizeof size);
    size.height = info.height;
    size.width = info.width;
    if (ebca_session_create(engine, &size, &session) != EBCA_OK) return fail("session");

    /* Two of them: the library steps over them by the size that the host knows. */
    ebca_edit_init(&edits[0], sizeof edits[0]);
    edits[0].prompt.texts = &texts[1];
    edits[0].prompt.count = 1;
    edits[0].alpha.value = 0.5;
    edits[1] = edits[0];
    edits[1].direction = 0;
    edits[1].alpha.value = 0.25;
    memset(&weight, 0, sizeof weight);
    weight.word = "red";
    weight.factor = 2;
    ebca_generate_params_init(&make, sizeof make);
    make.prompt.texts = texts;
    make.prompt.count = 1;
    make.steps = 2;
    make.seeds = &seed;
    make.seed_count = 1;
    make.gamma_attn.kind = EBCA_SCHEDULE_VALUES;
    make.gamma_attn.values = gammas;
    make.gamma_attn.count = 3;
    make.token_weights = &weight;
    make.token_weight_count = 1;
    make.edits = edits;
    make.edit_count = 2;
    make.on_step = count_steps;
    make.on_step_data = &steps;
    if (ebca_session_generate(session, &make, &result) != EBCA_OK) return fail("generate");
    printf("%s %dx%d steps %d seed %d\n", result->task, (int)result->width, (int)result->height, (int)steps,
           (int)result->seeds[0]);
    if (count > 2 && (file = fopen(arguments[2], "wb")) != NULL) {
        fwrite(result->pixels, 3, (size_t)result->width * (size_t)result->height, file);
        fclose(file);
    }
    ebca_result_free(result);
    ebca_session_free(session);
    ebca_engine_free(engine);
    return 0;
}
