// Which instruction set the kernels run on: decided here and nowhere else.
#pragma once

#include <string_view>

namespace flyweight {

/// Each tier includes the ones before it.
enum class CpuTier {
  kScalar = 0,  ///< what every machine of this architecture has
  kAvx2 = 1,    ///< AVX2, BMI1, BMI2, FMA, POPCNT
  kAvx512 = 2,  ///< AVX-512 F, BW, DQ, VL, VBMI, VBMI2 (Ice Lake, Zen 4 and later)
};

/// `scalar`, `avx2` or `avx512`.
std::string_view cpu_tier_name(CpuTier tier);

/// The best tier that this build, this CPU and this operating system support, and that the
/// environment variable FLYWEIGHT_CPU, read once, allows. Throws InvalidArgument if the variable
/// names no tier.
CpuTier best_cpu_tier();

/// The tier for kernels called by this thread: the forced one, else the best.
CpuTier cpu_tier();

/// Forces a tier for this thread while it lives. Throws InvalidArgument if the name is of no tier,
/// Unsupported if the machine cannot run it. An empty name forces nothing.
class ForcedCpuTier {
 public:
  explicit ForcedCpuTier(std::string_view name);
  ~ForcedCpuTier();
  ForcedCpuTier(const ForcedCpuTier&) = delete;
  ForcedCpuTier& operator=(const ForcedCpuTier&) = delete;

 private:
  int before_;
};

}  // namespace flyweight
