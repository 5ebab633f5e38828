#include <algorithm>
#include <memory>
#include <vector>

#include "bindings/buffers.hpp"
#include "rans/ans.hpp"
#include "rans/freq_table.hpp"
#include "rans/weights.hpp"

namespace flyweight::bindings {
namespace {

py::bytes ans_encode(const py::object& symbols, py::ssize_t alphabet_size) {
  const InputArray<std::uint8_t, 1> in(symbols, "symbols");
  rans::check_alphabet(narrow<std::size_t>(alphabet_size, "alphabet_size"));
  std::vector<std::int64_t> counts(static_cast<std::size_t>(alphabet_size));
  rans::AnsPlan plan;
  {
    const py::gil_scoped_release release;
    rans::histogram(in.span(), counts);
    plan = rans::plan_ans(counts);
  }
  for (const std::size_t room : {plan.likely_bound(), plan.bound()}) {
    // Not into the bytes object: cutting it to size would cost fresh pages at every call.
    const auto stream = std::make_unique_for_overwrite<std::byte[]>(room);
    std::size_t size = 0;
    try {
      const py::gil_scoped_release release;
      size = rans::ans_encode(in.span(), plan, {stream.get(), room});
    } catch (const BudgetExceeded&) {
      if (room == plan.bound()) throw;
      continue;
    }
    return {reinterpret_cast<const char*>(stream.get() + room - size), size};
  }
  return {};  // not reached: the bound suffices
}

py::array_t<std::uint8_t> ans_decode(const py::object& stream, py::ssize_t count,
                                     py::ssize_t alphabet_size) {
  const InputArray<std::uint8_t, 1> in(stream, "stream");
  const auto alphabet = narrow<std::size_t>(alphabet_size, "alphabet_size");
  narrow<std::size_t>(count, "count");
  py::array_t<std::uint8_t> symbols(count);
  const auto out = output_span(symbols);
  {
    const py::gil_scoped_release release;
    rans::ans_decode(in.bytes(), alphabet, out);
  }
  return symbols;
}

py::bytes choose_weights(const py::object& counts, int prob_bits) {
  const InputArray<std::int64_t, 1> in(counts, "counts");
  const auto bits = narrow<unsigned>(prob_bits, "prob_bits");
  std::vector<std::uint16_t> freqs(in.extent(0));
  rans::normalize_counts(in.span(), bits, freqs);  // checks the arguments
  std::vector<std::byte> table;
  std::size_t expected_bytes = 0;
  rans::choose_weights(in.span(), bits, table, expected_bytes);
  return {reinterpret_cast<const char*>(table.data()), table.size()};
}

py::tuple decode_weights(const py::object& stream, py::ssize_t alphabet_size) {
  const InputArray<std::uint8_t, 1> in(stream, "stream");
  const auto coded =
      rans::decode_weights(in.bytes(), narrow<std::size_t>(alphabet_size, "alphabet_size"));
  py::array_t<std::int64_t> weights(alphabet_size);
  std::ranges::copy(coded.weights, output_span(weights).begin());
  return py::make_tuple(weights, coded.bytes);
}

}  // namespace

void register_ans(py::module_& module) {
  using py::arg;
  module.def("ans_encode", &ans_encode, arg("symbols"), py::kw_only(), arg("alphabet_size"));
  module.def("ans_decode", &ans_decode, arg("stream"), py::kw_only(), arg("count"),
             arg("alphabet_size"));
  module.def("choose_weights", &choose_weights, arg("counts"), py::kw_only(), arg("prob_bits"));
  module.def("decode_weights", &decode_weights, arg("stream"), py::kw_only(), arg("alphabet_size"));
}

}  // namespace flyweight::bindings
