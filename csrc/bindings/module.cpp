// The extension module: one call per topic, and the one place that maps errors.
#include <pybind11/pybind11.h>

#include "common/error.hpp"

namespace flyweight::bindings {

namespace py = pybind11;

void register_ans(py::module_& module);
void register_bitpack(py::module_& module);
void register_cpu(py::module_& module);
void register_cuda_info(py::module_& module);
void register_gptq(py::module_& module);
void register_rans(py::module_& module);

namespace {

void raise_as(const char* name, const Error& error) {
  py::set_error(py::module_::import("flyweight.errors").attr(name), error.what());
}

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const InvalidArgument& error) {
    raise_as("InvalidArgumentError", error);
  } catch (const CorruptStream& error) {
    raise_as("CorruptStreamError", error);
  } catch (const Unsupported& error) {
    raise_as("UnsupportedError", error);
  } catch (const BudgetExceeded& error) {
    raise_as("BudgetExceededError", error);
  }
}

}  // namespace
}  // namespace flyweight::bindings

PYBIND11_MODULE(_core, module) {
  using namespace flyweight::bindings;
  module.doc() = "Compiled kernels; use them through flyweight.kernels.";
  module.attr("__version__") = FLYWEIGHT_VERSION;
  pybind11::register_local_exception_translator(&translate);
  register_ans(module);
  register_bitpack(module);
  register_cpu(module);
  register_cuda_info(module);
  register_gptq(module);
  register_rans(module);
}
