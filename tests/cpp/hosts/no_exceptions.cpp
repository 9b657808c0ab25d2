// A host without exceptions: statuses instead.
//     no_exceptions ENGINE_DIRECTORY
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ebca.hpp>

#if EBCA_EXCEPTIONS
#error "this program is for a compiler without exceptions"
#endif

static void require(bool holds, const char* what) {
    if (holds) return;
    std::printf("not so: %s (%s)\n", what, ebca_last_error());
    std::exit(1);
}

int main(int, char** arguments) {
    ebca::Engine missing("there is no such folder");
    require(!missing && missing.status() == EBCA_ERROR_ENGINE, "an engine that cannot be opened is empty");
    require(std::strstr(ebca_last_error(), "no such folder") != nullptr, "the error is told");
    require(missing.info().width == 0, "an empty engine has an info of zeros");
    ebca::Session none(missing);
    require(!none && none.status() == EBCA_ERROR_PARAMETER, "a session of an empty engine is empty");
    require(none.cancel() == EBCA_ERROR_PARAMETER, "an empty session cannot be cancelled");
    require(none.generate(ebca::GenerateParams()).status() == EBCA_ERROR_PARAMETER, "an empty session makes nothing");

    ebca::Engine engine(arguments[1]);
    require(bool(engine), "an engine opens");
    ebca::Session session(engine);
    ebca::Text prompt("a red circle");
    ebca::GenerateParams make;
    make.prompt = prompt;
    make.steps = 0;
    ebca::Result result = session.generate(make);
    require(!result && result.status() == EBCA_ERROR_PARAMETER, "a wrong parameter is a status");
    require(result->pixels == nullptr && result->image_count == 0, "an empty result has no pixels");
    make.steps = 2;
    result = session.generate(make, [](const ebca_step_info& step) { return step.index < 0; });
    require(result.status() == EBCA_ERROR_CANCELLED, "a callback cancels");
    result = session.generate(make);
    require(result.status() == EBCA_OK && result->pixels != nullptr, "the session makes the next image");
    std::puts("ok");
}
