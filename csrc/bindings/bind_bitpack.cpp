#include "bindings/buffers.hpp"
#include "bitpack/bitpack.hpp"

namespace flyweight::bindings {
namespace {

std::size_t packed_size(py::ssize_t count, int bits) {
  return bitpack::packed_size(narrow<std::size_t>(count, "count"), narrow<unsigned>(bits, "bits"));
}

py::array_t<std::uint8_t> pack_bits(const py::object& symbols, int bits) {
  const InputArray<std::uint8_t, 1> in(symbols, "symbols");
  const auto width = narrow<unsigned>(bits, "bits");
  const std::size_t size = bitpack::packed_size(in.extent(0), width);
  py::array_t<std::uint8_t> packed(narrow<py::ssize_t>(size, "size"));
  const auto out = std::as_writable_bytes(output_span(packed));
  {
    const py::gil_scoped_release release;
    bitpack::pack_bits(in.span(), width, out);
  }
  return packed;
}

py::array_t<std::uint8_t> unpack_bits(const py::object& packed, int bits, py::ssize_t count) {
  const InputArray<std::uint8_t, 1> in(packed, "packed");
  const auto width = narrow<unsigned>(bits, "bits");
  bitpack::check_packed(in.bytes(), narrow<std::size_t>(count, "count"), width);
  py::array_t<std::uint8_t> symbols(count);
  const auto out = output_span(symbols);
  {
    const py::gil_scoped_release release;
    bitpack::unpack_bits(in.bytes(), width, out);
  }
  return symbols;
}

}  // namespace

void register_bitpack(py::module_& module) {
  using py::arg;
  module.def("packed_size", &packed_size, arg("count"), py::kw_only(), arg("bits"));
  module.def("pack_bits", &pack_bits, arg("symbols"), py::kw_only(), arg("bits"));
  module.def("unpack_bits", &unpack_bits, arg("packed"), py::kw_only(), arg("bits"), arg("count"));
}

}  // namespace flyweight::bindings
