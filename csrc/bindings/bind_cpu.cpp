#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "common/cpu_dispatch.hpp"

namespace flyweight::bindings {

namespace py = pybind11;

namespace {

// `with ForcedCpuTier("avx2"):` around a kernel call, on the thread that makes it.
class ForcedTierContext {
 public:
  explicit ForcedTierContext(std::string name) : name_(std::move(name)) {}
  void enter() { forced_.emplace(name_); }
  void exit(const py::args& /*exception*/) { forced_.reset(); }

 private:
  std::string name_;
  std::optional<ForcedCpuTier> forced_;
};

std::vector<std::string> cpu_tiers() {
  std::vector<std::string> names;
  for (int tier = 0; tier <= static_cast<int>(best_cpu_tier()); ++tier) {
    names.emplace_back(cpu_tier_name(static_cast<CpuTier>(tier)));
  }
  return names;
}

}  // namespace

void register_cpu(py::module_& module) {
  module.def("cpu_tiers", &cpu_tiers);
  py::class_<ForcedTierContext>(module, "ForcedCpuTier")
      .def(py::init<std::string>(), py::arg("name"))
      .def("__enter__", &ForcedTierContext::enter)
      .def("__exit__", &ForcedTierContext::exit);
}

}  // namespace flyweight::bindings
