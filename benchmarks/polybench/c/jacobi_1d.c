#include "kernel.h"

void kernel(double a[restrict N], double b[restrict N]) {
    memcpy(b, a, sizeof(double) * N);
    for (int t = 0; t < T; t++) {
        for (int i = 1; i < N - 1; i++) b[i] = 0.33333 * (a[i - 1] + a[i] + a[i + 1]);
        for (int i = 1; i < N - 1; i++) a[i] = 0.33333 * (b[i - 1] + b[i] + b[i + 1]);
    }
}
