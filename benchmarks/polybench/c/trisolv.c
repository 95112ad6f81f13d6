#include "kernel.h"

void kernel(double l[restrict N][N], double b[restrict N], double result[restrict N]) {
    for (int i = 0; i < N; i++) {
        result[i] = b[i];
        for (int j = 0; j < i; j++) result[i] -= l[i][j] * result[j];
        result[i] /= l[i][i];
    }
}
