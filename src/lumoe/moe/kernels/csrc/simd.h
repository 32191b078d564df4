// The inner loops for the widest vectors that the sources are compiled for.
#pragma once
#ifdef LUMOE_AVX512
#include "simd_avx512.h"
#else
#include "simd_avx2.h"
#endif
