/* A prompt, edited by another one that is added to it or taken away, in C.
 *     edit ENGINE_DIRECTORY PROMPT +EDIT FILE.png        or -EDIT
 */
#include <ebca.h>
#include <stdio.h>
#include <string.h>

#include "save_image.h"

static int fail(const char* what, const char* why) {
    fprintf(stderr, "edit: %s: %s\n", what, why);
    return 1;
}

static int paint(ebca_session* session, const char* prompt, const char* change, const char* path) {
    const char* text = change + 1;
    const int64_t seed = 1;
    ebca_edit edit;
    ebca_generate_params make;
    ebca_result* result = NULL;
    const char* failed;

    ebca_edit_init(&edit, sizeof edit);
    edit.prompt.texts = &text;
    edit.prompt.count = 1;
    edit.direction = change[0] == '+';
    edit.alpha.value = 0.7;

    ebca_generate_params_init(&make, sizeof make);
    make.prompt.texts = &prompt;
    make.prompt.count = 1;
    make.seeds = &seed;
    make.seed_count = 1;
    make.edits = &edit;
    make.edit_count = 1;

    if (ebca_session_generate(session, &make, &result) != EBCA_OK) {
        return fail("generate", ebca_session_last_error(session));
    }
    failed = save_image(path, result);
    ebca_result_free(result);
    return failed ? fail(path, failed) : 0;
}

int main(int count, char** arguments) {
    ebca_engine_params open;
    ebca_engine* engine = NULL;
    ebca_session* session = NULL;
    int failed;

    if (count != 5 || (arguments[3][0] != '+' && arguments[3][0] != '-')) {
        fprintf(stderr, "usage: %s ENGINE_DIRECTORY PROMPT +EDIT|-EDIT FILE.png\n", arguments[0]);
        return 2;
    }
    ebca_engine_params_init(&open, sizeof open);
    open.abi_version = EBCA_ABI_VERSION;
    open.path = arguments[1];
    if (ebca_engine_open(&open, &engine) != EBCA_OK) return fail(arguments[1], ebca_last_error());
    if (ebca_session_create(engine, NULL, &session) == EBCA_OK) {
        failed = paint(session, arguments[2], arguments[3], arguments[4]);
    } else {
        failed = fail("session", ebca_engine_last_error(engine));
    }
    ebca_session_free(session);
    ebca_engine_free(engine);
    return failed;
}
