// Objects of ebca.hpp as members, in vectors, reassigned, moved from and empty.
//     moves ENGINE_DIRECTORY
#include <cstdio>
#include <cstdlib>
#include <ebca.hpp>
#include <map>

namespace {

void require(bool holds, const char* what) {
    if (holds) return;
    std::printf("not so: %s\n", what);
    std::exit(1);
}

template <typename Call>
void refused(Call call, const char* problem) {
    try {
        call();
    } catch (const ebca::Error& error) {
        require(error.status() == EBCA_ERROR_PARAMETER && error.problem() == problem, error.what());
        require(!error.remedy().empty(), problem);
        return;
    }
    require(false, problem);
}

struct Painter {
    ebca::Engine engine;
    std::vector<ebca::Session> sessions;
    std::map<std::string, ebca::Text> texts;
    ebca::Result last;
};

void texts_move() {
    const std::string one(200, 'x');
    for (const std::string& content : {std::string("short"), one}) {
        ebca::Text text(std::vector<std::string>{content, "b"});
        ebca_prompt before = text;
        std::vector<ebca::Text> kept;
        kept.push_back(std::move(text));
        for (int i = 0; i < 20; ++i) kept.emplace_back("more");  // so that the vector moves what it has
        ebca::Text last;
        last = std::move(kept.front());
        ebca_prompt after = last;
        require(before.texts == after.texts && after.count == 2, "a prompt stays valid when its text moves");
        require(after.texts[0] == content && after.texts[1] == std::string("b"), "the texts stay");
        require(kept.front().size() == 0 && ebca_prompt(kept.front()).count == 0, "a text is empty after a move");
        last = ebca::Text("another");
        require(last.data()[0] == std::string("another") && last.size() == 1, "a text can be assigned");
        last = std::move(last);
    }
}

}  // namespace

int main(int, char** arguments) {
    texts_move();
    Painter painter;
    require(!painter.engine && !painter.last, "objects are empty at first");
    refused([&] { painter.engine.info(); }, "the engine is NULL");
    refused([&] { painter.sessions.emplace_back(painter.engine); }, "the engine is NULL");
    refused([&] { ebca::Session().generate(ebca::GenerateParams()); }, "the session is NULL");
    refused([&] { ebca::Session().invert(ebca::InvertParams()); }, "the session is NULL");
    refused([&] { ebca::Session().cancel(); }, "the session is NULL");
    refused([&] { static_cast<void>(painter.last->pixels); }, "the result is empty");

    painter.engine = ebca::Engine(arguments[1]);
    painter.engine = std::move(painter.engine);
    painter.texts["a"] = ebca::Text("a red circle");
    for (int i = 0; i < 3; ++i) painter.sessions.emplace_back(painter.engine);
    Painter owner = std::move(painter);
    refused([&] { painter.engine.info(); }, "the engine is NULL");
    require(owner.engine.info().width == 64, "a moved engine works");
    ebca::GenerateParams make;
    make.steps = 1;
    refused([&] { owner.sessions[0].generate(make); }, "prompt has both texts and embeddings, or neither");
    make.prompt = owner.texts["a"];
    owner.last = owner.sessions[2].generate(make);
    require(owner.last->pixels && owner.last.status() == EBCA_OK, "a moved session works");
    ebca::Result taken = std::move(owner.last);
    refused([&] { static_cast<void>(*owner.last); }, "the result is empty");
    owner = Painter();
    require(taken->width == 64, "a result outlives its session");
    std::puts("ok");
}
