// Any symbols, by ANS with its own table and by rANS with classes: one stream from every tier,
// never larger than its bound, never a byte outside of the buffer, and every tier decodes it.
//
// Input: model (rans_model.hpp), buffer (u16), stride (u8), then pairs of symbol and run: the run
// is 2^(run & 15) symbols. The symbols are walked by the stride, so that long runs mix.
#include <tuple>

#include "fuzz/rans_model.hpp"
#include "rans/ans.hpp"

using namespace flyweight;

namespace {

constexpr std::size_t kMaxSymbols = 9'000;  // more than a block of the kernels

using Bytes = std::vector<std::byte>;
using Symbols = std::vector<std::uint8_t>;

Symbols take_symbols(fuzz::Input& input, std::size_t alphabet) {
  const std::size_t stride = input.u8() | 1u;
  Symbols runs;
  while (!input.is_done() && runs.size() < kMaxSymbols) {
    const auto symbol = static_cast<std::uint8_t>(input.u8() % alphabet);
    runs.insert(runs.end(), std::size_t{1} << (input.u8() & 15), symbol);
  }
  runs.resize(std::min(runs.size(), kMaxSymbols));
  Symbols mixed;
  for (std::size_t first = 0; first < std::min(stride, runs.size()); ++first) {
    for (std::size_t i = first; i < runs.size(); i += stride) mixed.push_back(runs[i]);
  }
  return mixed;
}

// The stream, or nothing if it does not fit into a buffer of `room` bytes.
std::optional<Bytes> encode_into(std::size_t room, const Symbols& symbols,
                                 const rans::AnsPlan& plan) {
  Bytes stream(room);
  try {
    const std::size_t size = rans::ans_encode(symbols, plan, stream);
    stream.erase(stream.begin(), stream.end() - static_cast<std::ptrdiff_t>(size));
  } catch (const BudgetExceeded&) {
    return std::nullopt;
  }
  return stream;
}

void check_ans(const Symbols& symbols, std::size_t alphabet, std::size_t room) {
  const auto encoded = fuzz::same_on_every_tier([&] {
    std::vector<std::int64_t> counts(alphabet);
    rans::histogram(symbols, counts);
    const rans::AnsPlan plan = rans::plan_ans(counts);
    auto stream = encode_into(plan.bound(), symbols, plan);
    fuzz::require(stream.has_value(), "the bound is too small");
    const auto tight = encode_into(std::min(room, plan.bound()), symbols, plan);
    fuzz::require(!tight || tight == stream, "the buffer changes the stream");
    return *stream;
  });
  fuzz::require(encoded.has_value(), "an encoder found a corrupt stream");
  const auto decoded = fuzz::same_on_every_tier([&] {
    Symbols back(symbols.size());
    rans::ans_decode(*encoded, alphabet, back);
    return back;
  });
  fuzz::require(decoded == symbols, "ans: the symbols do not come back");
  const auto cut = fuzz::same_on_every_tier([&] {
    Symbols back(symbols.size());
    rans::ans_decode(std::span(*encoded).first(encoded->size() - 1), alphabet, back);
    return back;
  });
  fuzz::require(!cut, "ans: a shorter stream passes");
}

void check_rans(fuzz::RansModel& made, const Symbols& symbols) {
  if (made.row_classes.empty()) {
    made.count = symbols.size();
  } else {
    const std::size_t rows =
        std::min(symbols.size() / made.col_classes.size(), made.row_classes.size());
    made.row_classes.resize(rows);
    made.count = rows * made.col_classes.size();
  }
  const auto coded = std::span(symbols).first(made.count);
  const auto stream = fuzz::same_on_every_tier([&] {
    Bytes room(rans::encode_bound(made.count, made.params.ways));
    const std::size_t used = rans::encode(coded, made.model(), made.params, made.hidden, room);
    return Bytes(room.end() - static_cast<std::ptrdiff_t>(used), room.end());
  });
  const auto decoded = fuzz::same_on_every_tier([&] {
    Symbols back(made.count);
    std::vector<std::uint16_t> hidden(made.hidden.size());
    const std::size_t read = rans::decode(*stream, made.model(), made.params, hidden, back);
    return std::tuple(back, hidden, read);
  });
  fuzz::require(decoded && std::ranges::equal(std::get<0>(*decoded), coded) &&
                    std::get<1>(*decoded) == made.hidden && std::get<2>(*decoded) == stream->size(),
                "rans: the symbols do not come back");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  fuzz::RansModel made = fuzz::take_rans_model(input, true);
  const std::size_t room = input.u16();
  const Symbols symbols = take_symbols(input, made.alphabet);
  check_ans(symbols, made.alphabet, room);
  check_rans(made, symbols);
  return 0;
}
