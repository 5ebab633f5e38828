// What the fuzz targets share: reading an input, running each CPU tier, and giving up.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <span>
#include <vector>

#include "common/cpu_dispatch.hpp"
#include "common/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace flyweight::fuzz {

/// Ends the process unless `is_true`: what the fuzzer, and the replay, take for a finding.
inline void require(bool is_true, const char* what) {
  if (is_true) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

/// An input from front to back; zeros follow its end.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}

  unsigned u8() {
    if (rest_.empty()) return 0;
    const unsigned value = rest_.front();
    rest_ = rest_.subspan(1);
    return value;
  }

  unsigned u16() {
    const unsigned low = u8();
    return low | u8() << 8;
  }

  bool is_done() const { return rest_.empty(); }
  std::span<const std::uint8_t> rest() const { return rest_; }
  std::span<const std::byte> rest_bytes() const { return std::as_bytes(rest_); }

 private:
  std::span<const std::uint8_t> rest_;
};

/// Small numbers that look random: tables and classes from two bytes of input.
class Noise {
 public:
  explicit Noise(unsigned seed) : state_(seed * 2654435761u + 1) {}

  std::uint32_t next(std::uint32_t limit) {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<std::uint32_t>(std::uint64_t{state_} * limit >> 32);
  }

 private:
  std::uint32_t state_;
};

/// Calls `run` under every tier that this machine has and holds it to one result. A result is what
/// `run` returns, or nothing if it throws CorruptStream; any other error is a finding.
template <class Run>
auto same_on_every_tier(Run run) {
  using Result = decltype(run());
  std::optional<Result> first;
  for (int tier = 0; tier <= static_cast<int>(best_cpu_tier()); ++tier) {
    const ForcedCpuTier forced(cpu_tier_name(static_cast<CpuTier>(tier)));
    std::optional<Result> result;
    try {
      result = run();
    } catch (const CorruptStream&) {
    }
    if (tier == 0) {
      first = std::move(result);
    } else {
      require(result == first, "two tiers disagree");
    }
  }
  return first;
}

}  // namespace flyweight::fuzz
