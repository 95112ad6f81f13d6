#include "kernel.h"

void kernel(double a[restrict I][K], double b[restrict K][J], double c[restrict J][M], double d[restrict M][L],
            double result[restrict I][L], double e[restrict I][J], double f[restrict J][L]) {
    for (int i = 0; i < I; i++)
        for (int j = 0; j < J; j++) {
            e[i][j] = 0;
            for (int k = 0; k < K; k++) e[i][j] += a[i][k] * b[k][j];
        }
    for (int j = 0; j < J; j++)
        for (int l = 0; l < L; l++) {
            f[j][l] = 0;
            for (int m = 0; m < M; m++) f[j][l] += c[j][m] * d[m][l];
        }
    for (int i = 0; i < I; i++)
        for (int l = 0; l < L; l++) {
            result[i][l] = 0;
            for (int j = 0; j < J; j++) result[i][l] += e[i][j] * f[j][l];
        }
}
