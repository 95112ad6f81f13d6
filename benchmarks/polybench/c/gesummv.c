#include "kernel.h"

void kernel(double alpha, double beta, double a[restrict N][N], double b[restrict N][N], double x[restrict N],
            double result[restrict N]) {
    for (int i = 0; i < N; i++) {
        double s = 0, t = 0;
        for (int j = 0; j < N; j++) {
            s += a[i][j] * x[j];
            t += b[i][j] * x[j];
        }
        result[i] = alpha * s + beta * t;
    }
}
