#include "common/cpu_dispatch.hpp"

#include <array>
#include <cstdlib>

#include "common/error.hpp"

namespace flyweight {
namespace {

constexpr std::array<std::string_view, 3> kNames = {"scalar", "avx2", "avx512"};
constexpr int kNotForced = -1;
thread_local int forced_tier = kNotForced;

CpuTier tier_by_name(std::string_view name, std::string_view source) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<CpuTier>(i);
  }
  fail<InvalidArgument>(source, ": got CPU tier '", name, "', expected scalar, avx2 or avx512");
}

// The builtin asks the CPU, and the operating system (XCR0) whether it saves the wide registers.
CpuTier supported_tier() {
#ifdef FLYWEIGHT_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                        __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("popcnt");
  const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
  if (has_avx2 && has_avx512) return CpuTier::kAvx512;
  if (has_avx2) return CpuTier::kAvx2;
#endif
  return CpuTier::kScalar;
}

CpuTier find_best_tier() {
  const CpuTier supported = supported_tier();
  const char* const wanted = std::getenv("FLYWEIGHT_CPU");
  if (wanted == nullptr || *wanted == '\0') return supported;
  const CpuTier allowed = tier_by_name(wanted, "FLYWEIGHT_CPU");
  return allowed < supported ? allowed : supported;
}

}  // namespace

std::string_view cpu_tier_name(CpuTier tier) { return kNames[static_cast<std::size_t>(tier)]; }

CpuTier best_cpu_tier() {
  static const CpuTier best = find_best_tier();
  return best;
}

CpuTier cpu_tier() {
  return forced_tier == kNotForced ? best_cpu_tier() : static_cast<CpuTier>(forced_tier);
}

ForcedCpuTier::ForcedCpuTier(std::string_view name) : before_(forced_tier) {
  if (name.empty()) return;
  const CpuTier tier = tier_by_name(name, "backend");
  if (tier > supported_tier()) {
    fail<Unsupported>("backend: this machine or build cannot run CPU tier '", name,
                      "', its best is ", cpu_tier_name(supported_tier()));
  }
  forced_tier = static_cast<int>(tier);
}

ForcedCpuTier::~ForcedCpuTier() { forced_tier = before_; }

}  // namespace flyweight
