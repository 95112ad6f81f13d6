#include "kernel.h"

static void step(double to[restrict N][N][N], double x[restrict N][N][N]) {
    for (int i = 1; i < N - 1; i++)
        for (int j = 1; j < N - 1; j++)
            for (int k = 1; k < N - 1; k++)
                to[i][j][k] = x[i][j][k] + 0.125 * (x[i + 1][j][k] - 2 * x[i][j][k] + x[i - 1][j][k]) +
                              0.125 * (x[i][j + 1][k] - 2 * x[i][j][k] + x[i][j - 1][k]) +
                              0.125 * (x[i][j][k + 1] - 2 * x[i][j][k] + x[i][j][k - 1]);
}

void kernel(double a[restrict N][N][N], double b[restrict N][N][N]) {
    memcpy(b, a, sizeof(double) * N * N * N);
    for (int t = 0; t < T; t++) {
        step(b, a);
        step(a, b);
    }
}
