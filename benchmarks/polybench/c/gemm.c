#include "kernel.h"

void kernel(double alpha, double beta, double c[restrict I][J], double a[restrict I][K], double b[restrict K][J]) {
    for (int i = 0; i < I; i++) {
        for (int j = 0; j < J; j++) c[i][j] *= beta;
        for (int k = 0; k < K; k++)
            for (int j = 0; j < J; j++) c[i][j] += alpha * a[i][k] * b[k][j];
    }
}
