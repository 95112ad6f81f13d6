/* What the C kernels share. Sizes are macros, given when a kernel is compiled; results are changed in place. */
#include <math.h>
#include <string.h>

#define SQUARE(x) ((x) * (x))
#define MIN(x, y) ((x) < (y) ? (x) : (y))
#define MAX(x, y) ((x) > (y) ? (x) : (y))
