// Arrays that come in from Python: exact dtype, C-contiguous, aligned, and never converted.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/checked.hpp"
#include "common/float16.hpp"

/// The buffer protocol's letter for half precision, which C++20 has no type for.
template <>
struct pybind11::format_descriptor<flyweight::Float16> {
  static std::string format() { return "e"; }
};

namespace flyweight::bindings {

namespace py = pybind11;

template <class T>
constexpr const char* dtype_name() {
  if constexpr (std::is_same_v<T, std::int8_t>) return "int8";
  if constexpr (std::is_same_v<T, std::uint8_t>) return "uint8";
  if constexpr (std::is_same_v<T, std::uint16_t>) return "uint16";
  if constexpr (std::is_same_v<T, std::int32_t>) return "int32";
  if constexpr (std::is_same_v<T, std::int64_t>) return "int64";
  if constexpr (std::is_same_v<T, Float16>) return "float16";
  if constexpr (std::is_same_v<T, float>) return "float32";
}

/// A read-only view of an object's buffer. Holds the buffer, hence the memory, while it lives; it
/// must be destroyed with the GIL held.
template <class T, py::ssize_t kDims>
class InputArray {
 public:
  InputArray(const py::object& source, const char* name) : name_(name) {
    if (!py::isinstance<py::buffer>(source)) {
      reject(std::string("got ") + Py_TYPE(source.ptr())->tp_name);
    }
    try {
      info_ = py::reinterpret_borrow<py::buffer>(source).request();
    } catch (py::error_already_set& error) {  // dtypes that the buffer protocol cannot express
      reject(error.what());
    }
    if (!info_.item_type_is_equivalent_to<T>()) {
      reject("got items of format '" + info_.format + "'");
    }
    if (info_.ndim != kDims) reject("got " + std::to_string(info_.ndim) + " dimensions");
    if (!is_contiguous()) reject("got one that is not C-contiguous");
    if (reinterpret_cast<std::uintptr_t>(info_.ptr) % alignof(T) != 0) {
      reject("got one that is not aligned");
    }
  }

  std::size_t extent(std::size_t axis) const { return static_cast<std::size_t>(info_.shape[axis]); }

  std::span<const T> span() const {
    return {static_cast<const T*>(info_.ptr), static_cast<std::size_t>(info_.size)};
  }

  std::span<const std::byte> bytes() const { return std::as_bytes(span()); }

 private:
  bool is_contiguous() const {
    py::ssize_t stride = info_.itemsize;
    for (auto axis = info_.ndim; axis-- > 0;) {
      const auto i = static_cast<std::size_t>(axis);
      if (info_.size != 0 && info_.shape[i] != 1 && info_.strides[i] != stride) return false;
      stride *= info_.shape[i];
    }
    return true;
  }

  [[noreturn]] void reject(const std::string& got) const {
    throw py::type_error(std::string(name_) + ": expected a C-contiguous " + dtype_name<T>() +
                         " array of " + std::to_string(kDims) + " dimension(s), " + got +
                         "; convert it with np.ascontiguousarray(" + name_ + ", dtype=np." +
                         dtype_name<T>() + ")");
  }

  const char* name_;
  py::buffer_info info_;
};

/// The array to fill: `given`, which must be a writable NumPy array of exactly this dtype and
/// shape, or a fresh one where that is None.
template <class T>
class OutputArray {
 public:
  OutputArray(const py::object& given, std::vector<py::ssize_t> shape) {
    if (given.is_none()) {
      array_ = py::array_t<T>(std::move(shape));
      return;
    }
    if (!py::isinstance<py::array>(given)) reject(Py_TYPE(given.ptr())->tp_name, shape);
    if (!py::isinstance<py::array_t<T>>(given)) {
      reject("dtype " + std::string(py::str(given.attr("dtype"))), shape);
    }
    array_ = py::reinterpret_borrow<py::array_t<T>>(given);
    if (!std::ranges::equal(shape,
                            std::span(array_.shape(), static_cast<std::size_t>(array_.ndim())))) {
      reject("shape " + std::string(py::str(given.attr("shape"))), shape);
    }
    if ((array_.flags() & py::array::c_style) == 0) reject("one that is not C-contiguous", shape);
    if (!array_.writeable()) reject("one that is read-only", shape);
    if (reinterpret_cast<std::uintptr_t>(array_.data()) % alignof(T) != 0) {
      reject("one that is not aligned", shape);
    }
  }

  std::span<T> span() { return {array_.mutable_data(), static_cast<std::size_t>(array_.size())}; }

  /// Throws if the array shares memory with an input.
  void check_apart_from(std::span<const std::byte> input, const char* name) {
    const auto mine = std::as_bytes(span());
    if (mine.data() < input.data() + input.size() && input.data() < mine.data() + mine.size()) {
      fail<InvalidArgument>("out overlaps ", name, ", expected separate memory");
    }
  }

  py::array_t<T> array() const { return array_; }

 private:
  [[noreturn]] static void reject(const std::string& got, const std::vector<py::ssize_t>& shape) {
    const std::string wanted = py::str(py::tuple(py::cast(shape)));
    throw py::type_error("out: expected a writable C-contiguous " + std::string(dtype_name<T>()) +
                         " array of shape " + wanted + ", got " + got + "; make it with np.empty(" +
                         wanted + ", dtype=np." + dtype_name<T>() + ")");
  }

  py::array_t<T> array_;
};

/// The memory of a fresh array, to be filled before anyone else sees it.
template <class T>
std::span<T> output_span(py::array_t<T>& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

}  // namespace flyweight::bindings
