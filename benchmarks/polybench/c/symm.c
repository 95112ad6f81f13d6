#include "kernel.h"

void kernel(double alpha, double beta, double c[restrict M][N], double a[restrict M][M], double b[restrict M][N]) {
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double s = 0;
            for (int k = 0; k < i; k++) {
                c[k][j] += alpha * b[i][j] * a[i][k];
                s += b[k][j] * a[i][k];
            }
            c[i][j] = beta * c[i][j] + alpha * (b[i][j] * a[i][i] + s);
        }
}
