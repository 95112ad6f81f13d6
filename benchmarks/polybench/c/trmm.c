#include "kernel.h"

void kernel(double alpha, double a[restrict M][M], double b[restrict M][N]) {
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            for (int k = i + 1; k < M; k++) b[i][j] += a[k][i] * b[k][j];
            b[i][j] *= alpha;
        }
}
