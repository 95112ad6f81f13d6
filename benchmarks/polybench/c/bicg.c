#include "kernel.h"

void kernel(double a[restrict N][M], double p[restrict M], double r[restrict N], double s[restrict M],
            double q[restrict N]) {
    for (int j = 0; j < M; j++) s[j] = 0;
    for (int i = 0; i < N; i++) {
        q[i] = 0;
        for (int j = 0; j < M; j++) {
            s[j] += r[i] * a[i][j];
            q[i] += a[i][j] * p[j];
        }
    }
}
