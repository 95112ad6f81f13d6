#include "kernel.h"

void kernel(double alpha, double beta, double a[restrict I][K], double b[restrict K][J], double c[restrict J][L],
            double d[restrict I][L], double t[restrict I][J]) {
    for (int i = 0; i < I; i++)
        for (int j = 0; j < J; j++) {
            t[i][j] = 0;
            for (int k = 0; k < K; k++) t[i][j] += alpha * a[i][k] * b[k][j];
        }
    for (int i = 0; i < I; i++)
        for (int l = 0; l < L; l++) {
            d[i][l] *= beta;
            for (int j = 0; j < J; j++) d[i][l] += t[i][j] * c[j][l];
        }
}
