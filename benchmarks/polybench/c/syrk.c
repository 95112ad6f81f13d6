#include "kernel.h"

void kernel(double alpha, double beta, double c[restrict N][N], double a[restrict N][M]) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j <= i; j++) c[i][j] *= beta;
        for (int k = 0; k < M; k++)
            for (int j = 0; j <= i; j++) c[i][j] += alpha * a[i][k] * a[j][k];
    }
}
