// Any bytes as a frequency table: refused, or weights that code to the same bytes again and make
// frequencies at every precision.
//
// Input: alphabet - 1 (u8), table, any bytes.
#include <numeric>

#include "fuzz/fuzz_input.hpp"
#include "rans/weights.hpp"

using namespace flyweight;

namespace {

void check_freqs(const rans::Weights& weights, unsigned prob_bits) {
  const rans::SplitTables tables = rans::split_weights(weights, prob_bits);
  const auto sum = [](const auto& freqs) {
    return std::accumulate(freqs.begin(), freqs.end(), 0u);
  };
  fuzz::require(sum(tables.freqs) == 1u << prob_bits, "frequencies do not fill the slots");
  if (!tables.has_rare()) return;
  fuzz::require(sum(tables.rare_freqs) == 1u << prob_bits,
                "rare frequencies do not fill the slots");
  for (std::size_t s = 0; s < weights.size(); ++s) {
    const bool is_coded = tables.freqs[s] != 0 || tables.rare_freqs[s] != 0;
    fuzz::require(is_coded == (weights[s] != 0), "a symbol lost or gained its frequency");
  }
  fuzz::require(tables.freqs[tables.escape] != 0, "the escape has no frequency");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const std::size_t alphabet = input.u8() + 1;
  const auto stream = input.rest_bytes();
  rans::CodedWeights coded;
  try {
    coded = rans::decode_weights(stream, alphabet);
  } catch (const CorruptStream&) {
    return 0;
  }
  fuzz::require(coded.weights.size() == alphabet && coded.bytes <= stream.size(), "wrong sizes");
  const unsigned mantissa_bits = std::to_integer<unsigned>(stream[2]) & 15;
  std::vector<std::byte> again;
  rans::encode_weights(coded.weights, mantissa_bits, again);
  fuzz::require(std::ranges::equal(again, stream.first(coded.bytes)), "a second table for weights");
  for (unsigned prob_bits = rans::kMinProbBits; prob_bits <= rans::kMaxProbBits; ++prob_bits) {
    check_freqs(coded.weights, prob_bits);
  }
  return 0;
}
