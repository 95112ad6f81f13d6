#include "kernel.h"

void kernel(double a[restrict N][N], double b[restrict N], double result[restrict N], double y[restrict N]) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < i; j++) {
            double s = a[i][j];
            for (int k = 0; k < j; k++) s -= a[i][k] * a[k][j];
            a[i][j] = s / a[j][j];
        }
        for (int j = i; j < N; j++) {
            double s = a[i][j];
            for (int k = 0; k < i; k++) s -= a[i][k] * a[k][j];
            a[i][j] = s;
        }
    }
    for (int i = 0; i < N; i++) {
        double s = b[i];
        for (int j = 0; j < i; j++) s -= a[i][j] * y[j];
        y[i] = s;
    }
    for (int i = N - 1; i >= 0; i--) {
        double s = y[i];
        for (int j = i + 1; j < N; j++) s -= a[i][j] * result[j];
        result[i] = s / a[i][i];
    }
}
