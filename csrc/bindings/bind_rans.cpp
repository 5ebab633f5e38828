#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "bindings/buffers.hpp"
#include "rans/freq_table.hpp"
#include "rans/rans.hpp"

namespace flyweight::bindings {
namespace {

using Words = std::vector<std::uint16_t>;
using Classes = std::optional<InputArray<std::uint8_t, 1>>;

// A private copy: the decoder's table is safe only as long as the checked frequencies stay what
// they were, and the caller's array can change once the GIL is released.
struct Tables {
  Words freqs;
  std::size_t alphabet;
};

Tables copy_tables(const py::object& freqs) {
  if (py::isinstance<py::array>(freqs) && py::reinterpret_borrow<py::array>(freqs).ndim() == 2) {
    const InputArray<std::uint16_t, 2> in(freqs, "freqs");
    rans::check_alphabet(in.extent(1));
    return {{in.span().begin(), in.span().end()}, in.extent(1)};
  }
  const InputArray<std::uint16_t, 1> in(freqs, "freqs");
  rans::check_alphabet(in.extent(0));
  return {{in.span().begin(), in.span().end()}, in.extent(0)};
}

Classes optional_classes(const py::object& classes, const char* name) {
  return classes.is_none() ? Classes() : Classes(std::in_place, classes, name);
}

std::span<const std::uint8_t> span_of(const Classes& classes) {
  return classes ? classes->span() : std::span<const std::uint8_t>();
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

py::bytes rans_encode(const py::object& symbols, const py::object& freqs, int prob_bits, int ways,
                      const py::object& row_classes, const py::object& col_classes,
                      const py::object& hidden) {
  const InputArray<std::uint8_t, 1> in(symbols, "symbols");
  const Tables tables = copy_tables(freqs);
  const Classes rows = optional_classes(row_classes, "row_classes");
  const Classes cols = optional_classes(col_classes, "col_classes");
  Words words;
  if (!hidden.is_none()) {
    const InputArray<std::uint16_t, 1> given(hidden, "hidden");
    words.assign(given.span().begin(), given.span().end());
  }
  const rans::Model model{tables.freqs, tables.alphabet, span_of(rows), span_of(cols)};
  const rans::Params params = make_params(prob_bits, ways);
  const std::size_t bound = rans::encode_bound(in.extent(0), params.ways);
  const auto stream = std::make_unique_for_overwrite<std::byte[]>(bound);
  std::size_t size = 0;
  {
    const py::gil_scoped_release release;
    size = rans::encode(in.span(), model, params, words, {stream.get(), bound});
  }
  return {reinterpret_cast<const char*>(stream.get() + bound - size), size};
}

py::array_t<std::uint8_t> rans_decode(const py::object& stream, const py::object& freqs,
                                      py::ssize_t count, int prob_bits, int ways,
                                      const py::object& row_classes, const py::object& col_classes,
                                      const py::object& hidden) {
  const InputArray<std::uint8_t, 1> in(stream, "stream");
  const Tables tables = copy_tables(freqs);
  const Classes rows = optional_classes(row_classes, "row_classes");
  const Classes cols = optional_classes(col_classes, "col_classes");
  const rans::Model model{tables.freqs, tables.alphabet, span_of(rows), span_of(cols)};
  const rans::Params params = make_params(prob_bits, ways);
  rans::encode_bound(narrow<std::size_t>(count, "count"), params.ways);  // checks the ways
  Words words(hidden.is_none() ? 0 : params.ways);
  OutputArray<std::uint16_t> given(hidden, {static_cast<py::ssize_t>(words.size())});
  py::array_t<std::uint8_t> symbols(count);
  const auto out = output_span(symbols);
  {
    const py::gil_scoped_release release;
    const std::size_t read = rans::decode(in.bytes(), model, params, words, out);
    if (read != in.extent(0)) {
      const std::size_t last = out.empty() ? 0 : out.size() - 1;
      fail<CorruptStream>("rans: all ", out.size(), " symbols were decoded at byte ", read, " of ",
                          in.extent(0), ", the last in way ", last % params.ways);
    }
  }
  std::ranges::copy(words, given.span().begin());
  return symbols;
}

}  // namespace

void register_rans(py::module_& module) {
  using py::arg;
  module.def("histogram", &histogram, arg("symbols"), py::kw_only(), arg("alphabet_size"));
  module.def("normalize_counts", &normalize_counts, arg("counts"), py::kw_only(), arg("prob_bits"));
  module.def("rans_bound", &rans_bound, arg("count"), py::kw_only(), arg("ways"));
  module.def("rans_encode", &rans_encode, arg("symbols"), arg("freqs"), py::kw_only(),
             arg("prob_bits"), arg("ways"), arg("row_classes") = py::none(),
             arg("col_classes") = py::none(), arg("hidden") = py::none());
  module.def("rans_decode", &rans_decode, arg("stream"), arg("freqs"), py::kw_only(), arg("count"),
             arg("prob_bits"), arg("ways"), arg("row_classes") = py::none(),
             arg("col_classes") = py::none(), arg("hidden") = py::none());
}

}  // namespace flyweight::bindings
