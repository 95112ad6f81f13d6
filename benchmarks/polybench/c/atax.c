#include "kernel.h"

void kernel(double a[restrict M][N], double x[restrict N], double result[restrict N]) {
    for (int j = 0; j < N; j++) result[j] = 0;
    for (int i = 0; i < M; i++) {
        double t = 0;
        for (int j = 0; j < N; j++) t += a[i][j] * x[j];
        for (int j = 0; j < N; j++) result[j] += a[i][j] * t;
    }
}
