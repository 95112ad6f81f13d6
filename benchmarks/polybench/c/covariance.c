#include "kernel.h"

void kernel(double data[restrict N][M], double result[restrict M][M], double mean[restrict M]) {
    for (int j = 0; j < M; j++) {
        mean[j] = 0;
        for (int i = 0; i < N; i++) mean[j] += data[i][j];
        mean[j] /= N;
    }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < M; j++) data[i][j] -= mean[j];
    for (int i = 0; i < M; i++)
        for (int j = i; j < M; j++) {
            result[i][j] = 0;
            for (int k = 0; k < N; k++) result[i][j] += data[k][i] * data[k][j];
            result[i][j] /= N - 1.0;
            result[j][i] = result[i][j];
        }
}
