// The one seam between the runtime and whatever runs a graph, as engines/backends/protocol.py has it.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "cancellation.hpp"
#include "contract/manifest.hpp"
#include "contract/tensor.hpp"

namespace ebca::internal {

// A graph with fixed addresses. Runs it once per call; used from one thread at a time.
class Call {
  public:
    virtual ~Call() = default;
    // BackendError where the graph fails, OutOfMemoryError.
    virtual void run() = 0;
    // The same; CancelledError as soon as a request reaches it, if the library can be stopped. It may be run again.
    virtual void run_until(Cancellation&) { run(); }
};

// One opened graph. Calls of one runner may run in different threads; they keep it open.
class Runner {
  public:
    virtual ~Runner() = default;
    // Fix the addresses of all inputs and outputs, which belong to the caller and must outlive the result.
    virtual std::unique_ptr<Call> bind(const Tensors& inputs, const Tensors& outputs) const = 0;
    // The same for a result that is called once: a library that manages its own scratch memory gives it back then.
    virtual std::unique_ptr<Call> bind_once(const Tensors& inputs, const Tensors& outputs) const {
        return bind(inputs, outputs);
    }
};

// Opens components. `prepare` writes a form that `open` then loads quickly; where `prepares` is false there is none,
// and the graphs of the engine directory are opened unchanged. Thread-safe.
class Backend {
  public:
    // Weights may be padded to the processor's block size.
    static constexpr double kPadding = 1.1;

    virtual ~Backend() = default;
    virtual const std::string& name() const = 0;
    virtual const std::string& version() const = 0;  // of the library that was found
    virtual int threads() const = 0;                 // of every graph
    virtual bool prepares() const = 0;
    // A component is opened for one set of sizes, and again for another.
    virtual bool fixes_shapes() const { return false; }
    // Opening takes far longer than running, so components stay open while memory allows.
    virtual bool stays_open() const { return false; }
    // Components take scratch memory from one place and give it back after each run. Recorded work still uses what it
    // was given, so it is out of date once another component has been opened.
    virtual bool shares_scratch() const { return false; }

    // Everything beside the files that a prepared form depends on: versions, processor, precision.
    virtual std::map<std::string, std::string> identity() const = 0;

    // Bytes that the prepared form takes at least for each byte of files whose weights are stored as `precision`.
    virtual double growth(const std::string& /*precision*/) const { return kPadding; }

    // Write the prepared form of `graph` as `target` and files named after it. May be slow.
    virtual void prepare(const std::filesystem::path& graph, const std::filesystem::path& target) const = 0;

    // Open what `prepare` wrote. dimensions: of the component's inputs and outputs, for backends that fix shapes.
    // BackendError where the library refuses it, DeviceMemoryError.
    virtual std::shared_ptr<Runner> open(const std::filesystem::path& prepared, const Component& component,
                                         const Dimensions& dimensions) const = 0;
};

}  // namespace ebca::internal
