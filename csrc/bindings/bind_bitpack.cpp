#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <utility>

#include "bindings/buffers.hpp"
#include "bitpack/bitpack.hpp"

namespace flyweight::bindings {
namespace {

std::size_t packed_size(py::ssize_t count, int bits) {
  return bitpack::packed_size(narrow<std::size_t>(count, "count"), narrow<unsigned>(bits, "bits"));
}

// `pack` takes the codes and the bytes to fill.
template <class Code, class Pack>
py::array pack_into(const py::object& codes, const char* name, unsigned bits,
                    const py::object& given, Pack pack) {
  const InputArray<Code, 1> in(codes, name);
  const std::size_t size = bitpack::packed_size(in.extent(0), bits);
  OutputArray<std::uint8_t> out(given, {narrow<py::ssize_t>(size, "size")});
  out.check_apart_from(in.bytes(), name);
  const auto packed = std::as_writable_bytes(out.span());
  {
    const py::gil_scoped_release release;
    pack(in.span(), packed);
  }
  return out.array();
}

py::array pack_bits(const py::object& symbols, int bits, std::optional<int> lo,
                    const py::object& out) {
  const auto width = narrow<unsigned>(bits, "bits");
  if (!lo) {
    return pack_into<std::uint8_t>(symbols, "symbols", width, out, [&](auto in, auto packed) {
      bitpack::pack_bits(in, width, packed);
    });
  }
  const bitpack::CodeRange range{width, *lo};
  bitpack::check_range(range);
  return pack_into<std::int8_t>(symbols, "symbols", width, out, [&](auto in, auto packed) {
    bitpack::pack_codes(in, range, packed);
  });
}

// `unpack` takes the bytes and the codes to fill.
template <class Code, class Unpack>
py::array unpack_into(const py::object& packed, unsigned bits, py::ssize_t count,
                      const py::object& given, Unpack unpack) {
  const InputArray<std::uint8_t, 1> in(packed, "packed");
  bitpack::check_packed(in.bytes(), narrow<std::size_t>(count, "count"), bits);
  OutputArray<Code> out(given, {count});
  out.check_apart_from(in.bytes(), "packed");
  const auto codes = out.span();
  {
    const py::gil_scoped_release release;
    unpack(in.bytes(), codes);
  }
  return out.array();
}

py::array unpack_bits(const py::object& packed, int bits, py::ssize_t count, std::optional<int> lo,
                      const py::object& out) {
  const auto width = narrow<unsigned>(bits, "bits");
  if (!lo) {
    return unpack_into<std::uint8_t>(packed, width, count, out, [&](auto in, auto symbols) {
      bitpack::unpack_bits(in, width, symbols);
    });
  }
  const bitpack::CodeRange range{width, *lo};
  bitpack::check_range(range);
  return unpack_into<std::int8_t>(packed, width, count, out, [&](auto in, auto codes) {
    bitpack::unpack_codes(in, range, codes);
  });
}

// Scales as float32: the caller's own memory, or halves widened into memory of ours.
class Scales {
 public:
  Scales(const py::object& source, std::size_t rows, std::size_t groups) {
    if (is_half(source)) {
      const InputArray<Float16, 2> halves(source, "scales");
      check_shape(halves, rows, groups);
      const auto from = halves.span();
      widened_ = std::make_unique_for_overwrite<float[]>(from.size());
      std::ranges::transform(from, widened_.get(), to_float32);
      span_ = {widened_.get(), from.size()};
    } else {
      floats_.emplace(source, "scales");
      check_shape(*floats_, rows, groups);
      span_ = floats_->span();
    }
  }

  std::span<const float> span() const { return span_; }

 private:
  static bool is_half(const py::object& source) {
    return py::isinstance<py::array>(source) &&
           py::reinterpret_borrow<py::array>(source).dtype().char_() == 'e';
  }

  template <class Array>
  static void check_shape(const Array& array, std::size_t rows, std::size_t groups) {
    if (array.extent(0) != rows || array.extent(1) != groups) {
      fail<InvalidArgument>("bitpack: scales has shape (", array.extent(0), ", ", array.extent(1),
                            "), expected (", rows, ", ", groups, ")");
    }
  }

  std::optional<InputArray<float, 2>> floats_;
  std::unique_ptr<float[]> widened_;
  std::span<const float> span_;
};

template <class Value>
py::array dequantize_into(const InputArray<std::uint8_t, 1>& in, const Scales& scales,
                          bitpack::CodeRange range, bitpack::MatrixShape shape,
                          const py::object& given) {
  OutputArray<Value> out(
      given, {narrow<py::ssize_t>(shape.rows, "rows"), narrow<py::ssize_t>(shape.cols, "cols")});
  out.check_apart_from(in.bytes(), "packed");
  out.check_apart_from(std::as_bytes(scales.span()), "scales");
  const auto values = out.span();
  {
    const py::gil_scoped_release release;
    bitpack::unpack_dequantize(in.bytes(), scales.span(), range, shape, values);
  }
  return out.array();
}

py::array unpack_dequantize(const py::object& packed, const py::object& scales, int bits, int lo,
                            std::pair<py::ssize_t, py::ssize_t> shape, py::ssize_t group_size,
                            const std::string& dtype, const py::object& out) {
  const InputArray<std::uint8_t, 1> in(packed, "packed");
  const bitpack::CodeRange range{narrow<unsigned>(bits, "bits"), lo};
  const bitpack::MatrixShape matrix{narrow<std::size_t>(shape.first, "rows"),
                                    narrow<std::size_t>(shape.second, "cols"),
                                    narrow<std::size_t>(group_size, "group_size")};
  bitpack::check_range(range);
  bitpack::check_packed(in.bytes(), checked_mul(matrix.rows, matrix.cols), range.bits);
  const Scales widened(scales, matrix.rows, bitpack::scale_groups(matrix));
  if (dtype == "float32") return dequantize_into<float>(in, widened, range, matrix, out);
  if (dtype == "bfloat16") return dequantize_into<std::uint16_t>(in, widened, range, matrix, out);
  fail<InvalidArgument>("got dtype='", dtype, "', expected 'float32' or 'bfloat16'");
}

}  // namespace

void register_bitpack(py::module_& module) {
  using py::arg;
  module.def("packed_size", &packed_size, arg("count"), py::kw_only(), arg("bits"));
  module.def("pack_bits", &pack_bits, arg("symbols"), py::kw_only(), arg("bits"),
             arg("lo") = py::none(), arg("out") = py::none());
  module.def("unpack_bits", &unpack_bits, arg("packed"), py::kw_only(), arg("bits"), arg("count"),
             arg("lo") = py::none(), arg("out") = py::none());
  module.def("unpack_dequantize", &unpack_dequantize, arg("packed"), arg("scales"), py::kw_only(),
             arg("bits"), arg("lo"), arg("shape"), arg("group_size") = 0, arg("dtype") = "float32",
             arg("out") = py::none());
}

}  // namespace flyweight::bindings
