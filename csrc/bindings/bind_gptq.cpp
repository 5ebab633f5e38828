#include <memory>
#include <optional>

#include "bindings/buffers.hpp"
#include "gptq/gptq.hpp"

namespace flyweight::bindings {
namespace {

template <class T, py::ssize_t kDims>
std::optional<InputArray<T, kDims>> optional_array(const py::object& source, const char* name) {
  if (source.is_none()) return std::nullopt;
  return std::optional<InputArray<T, kDims>>(std::in_place, source, name);
}

template <class T, py::ssize_t kDims>
std::optional<std::span<const T>> optional_span(const std::optional<InputArray<T, kDims>>& array) {
  if (!array) return std::nullopt;
  return array->span();
}

template <class T>
void check_shape(const char* name, const InputArray<T, 2>& array, std::size_t rows,
                 std::size_t cols) {
  if (array.extent(0) != rows || array.extent(1) != cols) {
    fail<InvalidArgument>("gptq: ", name, " has shape (", array.extent(0), ", ", array.extent(1),
                          "), expected (", rows, ", ", cols, ")");
  }
}

py::array_t<std::int8_t> gptq_quantize(const py::object& weights, const py::object& inverse_factor,
                                       const py::object& scales, const py::object& column_groups,
                                       const py::object& zero_points, int lo, int hi,
                                       py::ssize_t block_cols, py::ssize_t threads) {
  const InputArray<float, 2> w(weights, "weights");
  const InputArray<float, 2> u(inverse_factor, "inverse_factor");
  const InputArray<float, 2> s(scales, "scales");
  const auto groups = optional_array<std::int32_t, 1>(column_groups, "column_groups");
  const auto zeros = optional_array<float, 2>(zero_points, "zero_points");
  const gptq::Shape shape{w.extent(0), w.extent(1), s.extent(1)};
  check_shape("inverse_factor", u, shape.cols, shape.cols);
  check_shape("scales", s, shape.rows, shape.groups);
  if (zeros) check_shape("zero_points", *zeros, shape.rows, shape.groups);

  const gptq::Params params{lo, hi, narrow<std::size_t>(block_cols, "block_cols")};
  const gptq::Inputs inputs{w.span(), u.span(), s.span(), optional_span(groups),
                            optional_span(zeros)};
  const auto workers = narrow<std::size_t>(threads, "threads");
  const std::size_t scratch_size = gptq::scratch_size(shape, workers);
  const auto scratch = std::make_unique_for_overwrite<float[]>(scratch_size);
  py::array_t<std::int8_t> codes(
      {static_cast<py::ssize_t>(shape.rows), static_cast<py::ssize_t>(shape.cols)});
  const auto out = output_span(codes);
  {
    const py::gil_scoped_release release;
    gptq::quantize(inputs, shape, params, workers, {scratch.get(), scratch_size}, out);
  }
  return codes;
}

}  // namespace

void register_gptq(py::module_& module) {
  using py::arg;
  module.def("gptq_quantize", &gptq_quantize, arg("weights"), arg("inverse_factor"), arg("scales"),
             py::kw_only(), arg("column_groups") = py::none(), arg("zero_points") = py::none(),
             arg("lo"), arg("hi"), arg("block_cols") = 128, arg("threads") = 1);
}

}  // namespace flyweight::bindings
