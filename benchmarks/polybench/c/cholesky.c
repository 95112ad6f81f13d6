#include "kernel.h"

void kernel(double a[restrict N][N]) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < i; j++) {
            for (int k = 0; k < j; k++) a[i][j] -= a[i][k] * a[j][k];
            a[i][j] /= a[j][j];
        }
        for (int k = 0; k < i; k++) a[i][i] -= SQUARE(a[i][k]);
        a[i][i] = sqrt(a[i][i]);
    }
}
