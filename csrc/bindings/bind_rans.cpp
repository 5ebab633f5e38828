#include <memory>
#include <vector>

#include "bindings/buffers.hpp"
#include "rans/freq_table.hpp"
#include "rans/rans.hpp"

namespace flyweight::bindings {
namespace {

using Freqs = std::vector<std::uint16_t>;

// A private copy of at most 512 bytes: the decoder's table is safe only as long as the checked
// frequencies stay what they were, and the caller's array can change once the GIL is released.
Freqs copy_freqs(const py::object& freqs) {
  const InputArray<std::uint16_t, 1> in(freqs, "freqs");
  rans::check_alphabet(in.extent(0));
  return {in.span().begin(), in.span().end()};
}

rans::Params make_params(int prob_bits, int ways) {
  return {narrow<unsigned>(prob_bits, "prob_bits"), narrow<unsigned>(ways, "ways")};
}

py::array_t<std::int64_t> histogram(const py::object& symbols, py::ssize_t alphabet_size) {
  const InputArray<std::uint8_t, 1> in(symbols, "symbols");
  rans::check_alphabet(narrow<std::size_t>(alphabet_size, "alphabet_size"));
  py::array_t<std::int64_t> counts(alphabet_size);
  const auto out = output_span(counts);
  {
    const py::gil_scoped_release release;
    rans::histogram(in.span(), out);
  }
  return counts;
}

py::array_t<std::uint16_t> normalize_counts(const py::object& counts, int prob_bits) {
  const InputArray<std::int64_t, 1> in(counts, "counts");
  rans::check_alphabet(in.extent(0));
  py::array_t<std::uint16_t> freqs(static_cast<py::ssize_t>(in.extent(0)));
  rans::normalize_counts(in.span(), narrow<unsigned>(prob_bits, "prob_bits"), output_span(freqs));
  return freqs;
}

std::size_t rans_bound(py::ssize_t count, int ways) {
  return rans::encode_bound(narrow<std::size_t>(count, "count"), narrow<unsigned>(ways, "ways"));
}

py::bytes rans_encode(const py::object& symbols, const py::object& freqs, int prob_bits, int ways) {
  const InputArray<std::uint8_t, 1> in(symbols, "symbols");
  const Freqs table = copy_freqs(freqs);
  const rans::Params params = make_params(prob_bits, ways);
  const std::size_t bound = rans::encode_bound(in.extent(0), params.ways);
  const auto stream = std::make_unique_for_overwrite<std::byte[]>(bound);
  std::size_t size = 0;
  {
    const py::gil_scoped_release release;
    size = rans::encode(in.span(), table, params, {stream.get(), bound});
  }
  return {reinterpret_cast<const char*>(stream.get()), size};
}

py::array_t<std::uint8_t> rans_decode(const py::object& stream, const py::object& freqs,
                                      py::ssize_t count, int prob_bits, int ways) {
  const InputArray<std::uint8_t, 1> in(stream, "stream");
  const Freqs table = copy_freqs(freqs);
  const rans::Params params = make_params(prob_bits, ways);
  narrow<std::size_t>(count, "count");
  py::array_t<std::uint8_t> symbols(count);
  const auto out = output_span(symbols);
  {
    const py::gil_scoped_release release;
    rans::decode(in.bytes(), table, params, out);
  }
  return symbols;
}

}  // namespace

void register_rans(py::module_& module) {
  using py::arg;
  module.def("histogram", &histogram, arg("symbols"), py::kw_only(), arg("alphabet_size"));
  module.def("normalize_counts", &normalize_counts, arg("counts"), py::kw_only(), arg("prob_bits"));
  module.def("rans_bound", &rans_bound, arg("count"), py::kw_only(), arg("ways"));
  module.def("rans_encode", &rans_encode, arg("symbols"), arg("freqs"), py::kw_only(),
             arg("prob_bits"), arg("ways"));
  module.def("rans_decode", &rans_decode, arg("stream"), arg("freqs"), py::kw_only(), arg("count"),
             arg("prob_bits"), arg("ways"));
}

}  // namespace flyweight::bindings
