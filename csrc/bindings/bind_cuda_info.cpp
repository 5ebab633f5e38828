// What this build knows about CUDA. Never throws: a machine without a GPU is an ordinary machine.
#include <pybind11/pybind11.h>

#include <string>

#if FLYWEIGHT_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace flyweight::bindings {

namespace py = pybind11;

namespace {

py::dict describe(bool built_with_cuda, const py::object& runtime_version,
                  const py::object& driver_version, const py::list& devices,
                  const py::object& problem) {
  py::dict info;
  info["built_with_cuda"] = built_with_cuda;
  info["runtime_version"] = runtime_version;
  info["driver_version"] = driver_version;
  info["devices"] = devices;
  info["problem"] = problem;
  return info;
}

#if FLYWEIGHT_WITH_CUDA

// CUDA packs a version as 1000 * major + 10 * minor.
py::str version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

py::dict cuda_info() {
  const py::str runtime_version = version_text(CUDART_VERSION);  // linked statically
  int driver = 0;                                                // stays 0 without a driver
  const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver != 0;
  const py::object driver_version = has_driver ? py::object(version_text(driver)) : py::none();
  py::list devices;
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  for (int device = 0; status == cudaSuccess && device < count; ++device) {
    cudaDeviceProp properties{};
    status = cudaGetDeviceProperties(&properties, device);
    if (status == cudaSuccess) devices.append(py::str(properties.name));
  }
  py::object problem = py::none();
  if (status != cudaSuccess) {
    const std::string reason = cudaGetErrorString(status);
    problem = py::str(has_driver ? reason : "no CUDA driver is loaded (" + reason + ")");
  } else if (count == 0) {
    problem = py::str("the CUDA driver reports no device");
  }
  return describe(true, runtime_version, driver_version, devices, problem);
}

#else

py::dict cuda_info() {
  return describe(false, py::none(), py::none(), py::list(),
                  py::str("this build has no CUDA: install the CUDA toolkit and reinstall "
                          "flyweight with FLYWEIGHT_CUDA=ON"));
}

#endif

}  // namespace

void register_cuda_info(py::module_& module) { module.def("cuda_info", &cuda_info); }

}  // namespace flyweight::bindings
