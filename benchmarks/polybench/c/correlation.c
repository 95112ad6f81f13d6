#include "kernel.h"

void kernel(double data[restrict N][M], double result[restrict M][M], double mean[restrict M],
            double deviation[restrict M]) {
    for (int j = 0; j < M; j++) {
        mean[j] = 0;
        for (int i = 0; i < N; i++) mean[j] += data[i][j];
        mean[j] /= N;
    }
    for (int j = 0; j < M; j++) {
        deviation[j] = 0;
        for (int i = 0; i < N; i++) deviation[j] += SQUARE(data[i][j] - mean[j]);
        deviation[j] = sqrt(deviation[j] / N);
        if (deviation[j] <= 0.1) deviation[j] = 1;
    }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < M; j++) data[i][j] = (data[i][j] - mean[j]) / (sqrt((double)N) * deviation[j]);
    for (int i = 0; i < M; i++) {
        result[i][i] = 1;
        for (int j = i + 1; j < M; j++) {
            result[i][j] = 0;
            for (int k = 0; k < N; k++) result[i][j] += data[k][i] * data[k][j];
            result[j][i] = result[i][j];
        }
    }
}
