#include "backends/ort_assignment.hpp"

#include <set>

#include "error.hpp"

namespace ebca::internal {

#if ORT_API_VERSION >= 24

namespace {

constexpr const char* kDoing = "cannot say where a graph runs";

// Shapes are computed on the host. None of these operators takes part in that, and on the host each would copy its
// tensors from the GPU and back.
const std::set<std::string>& gpu_operators() {
    static const std::set<std::string> names{"Conv",
                                             "Gemm",
                                             "MatMul",
                                             "Attention",
                                             "MultiHeadAttention",
                                             "LayerNormalization",
                                             "SkipLayerNormalization",
                                             "GroupNorm",
                                             "SkipGroupNorm",
                                             "BiasSplitGelu",
                                             "Transpose",
                                             "InstanceNormalization",
                                             "GroupNormalization",
                                             "Softmax",
                                             "Sigmoid",
                                             "Gelu",
                                             "Erf",
                                             "Resize",
                                             "ReduceMean",
                                             "Sqrt",
                                             "Sin",
                                             "Cos"};
    return names;
}

}  // namespace

void record_assignment(const OrtLibrary& ort, OrtSessionOptions& options) {
    ort.check(ort.api().AddSessionConfigEntry(&options, "session.record_ep_graph_assignment_info", "1"), kDoing);
}

void check_assignment(const OrtLibrary& ort, const OrtSession& session, const std::string& graph,
                      const std::string& provider) {
    const OrtApi& api = ort.api();
    const OrtEpAssignedSubgraph* const* parts = nullptr;
    size_t part_count = 0;
    ort.check(api.Session_GetEpGraphAssignmentInfo(&session, &parts, &part_count), kDoing);
    std::set<std::string> stray;
    for (size_t i = 0; i < part_count; ++i) {
        const char* where = nullptr;
        const OrtEpAssignedNode* const* nodes = nullptr;
        size_t node_count = 0;
        ort.check(api.EpAssignedSubgraph_GetEpName(parts[i], &where), kDoing);
        ort.check(api.EpAssignedSubgraph_GetNodes(parts[i], &nodes, &node_count), kDoing);
        for (size_t n = 0; n < node_count; ++n) {
            const char* name = nullptr;
            ort.check(api.EpAssignedNode_GetOperatorType(nodes[n], &name), kDoing);
            if (provider != where && gpu_operators().count(name)) stray.insert(name);
        }
    }
    if (stray.empty()) return;
    std::string names;
    for (const std::string& name : stray) names += (names.empty() ? "" : ", ") + name;
    throw BackendError(
        text("onnxruntime ", ort.version(), " would run ", names, " of '", graph, "' elsewhere than on ", provider),
        "install the provider's CUDA libraries, and export the engine with --backend onnxruntime-cuda");
}

#endif

}  // namespace ebca::internal
