#include "kernel.h"

void kernel(double a[restrict M][N], double q[restrict M][N], double r[restrict N][N]) {
    for (int k = 0; k < N; k++) {
        double s = 0;
        for (int i = 0; i < M; i++) s += SQUARE(a[i][k]);
        r[k][k] = sqrt(s);
        for (int i = 0; i < M; i++) q[i][k] = a[i][k] / r[k][k];
        for (int j = k + 1; j < N; j++) {
            r[k][j] = 0;
            for (int i = 0; i < M; i++) r[k][j] += q[i][k] * a[i][j];
            for (int i = 0; i < M; i++) a[i][j] -= q[i][k] * r[k][j];
        }
    }
}
