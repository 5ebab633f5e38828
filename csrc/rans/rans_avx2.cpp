#ifndef __AVX2__
#error "wrong flags"
#endif
