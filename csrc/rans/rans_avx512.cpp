#ifndef __AVX512VBMI2__
#error "wrong flags"
#endif
