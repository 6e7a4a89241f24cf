// Kernels for instructions that few CPUs have, with those instructions in plain C++.

#pragma once

#include "../src/kernels.h"

namespace embellama {
extern const Kernels kernels_emulated_bf16, kernels_emulated_amx;
}
