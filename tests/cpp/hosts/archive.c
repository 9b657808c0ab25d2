/* A host that reads an engine directory from one file, with the code of docs/embedding.md.
 *
 *     archive FILE INDEX ONNXRUNTIME CACHE
 *
 * INDEX has lines of a name, an offset and a size. Prints the sum of the bytes of an image. */
#include <inttypes.h>
#include <stdlib.h>

#include "read_member.h"

enum { MOST = 200 };

static int fail(const char* what) {
    fprintf(stderr, "%s: %s\n", what, ebca_last_error());
    return 1;
}

int main(int count, char** arguments) {
    static char names[MOST][200];
    static member members[MOST];
    if (count < 5) return 2;
    archive from = {fopen(arguments[1], "rb"), members, 0};
    FILE* index = fopen(arguments[2], "r");
    if (!from.file || !index) return 2;
    for (; from.count < MOST; ++from.count) {
        member* one = &members[from.count];
        if (fscanf(index, "%199s %" SCNd64 " %" SCNd64, names[from.count], &one->offset, &one->size) != 3) break;
        one->name = names[from.count];
    }
    fclose(index);
    ebca_engine_params open;
    ebca_engine_params_init(&open, sizeof open);
    open.read = read_member;
    open.read_data = &from;
    open.onnxruntime_library = arguments[3];
    open.cache_dir = arguments[4];
    ebca_engine* engine = NULL;
    if (ebca_engine_open(&open, &engine) != EBCA_OK) return fail("open");
    fclose(from.file);
    ebca_session* session = NULL;
    if (ebca_session_create(engine, NULL, &session) != EBCA_OK) return fail("session");
    const char* prompt = "a red circle";
    const int64_t seed = 1;
    ebca_generate_params make;
    ebca_generate_params_init(&make, sizeof make);
    make.prompt.texts = &prompt;
    make.prompt.count = 1;
    make.steps = 1;
    make.seeds = &seed;
    make.seed_count = 1;
    ebca_result* result = NULL;
    if (ebca_session_generate(session, &make, &result) != EBCA_OK) return fail("generate");
    long sum = 0;
    for (int i = 0; i < result->height * result->width * 3; ++i) sum += result->pixels[i];
    printf("%ld\n", sum);
    ebca_result_free(result);
    ebca_session_free(session);
    ebca_engine_free(engine);
    return 0;
}
