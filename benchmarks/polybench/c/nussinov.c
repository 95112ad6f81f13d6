#include "kernel.h"

void kernel(int base[restrict N], int result[restrict N][N]) {
    for (int i = N - 1; i >= 0; i--)
        for (int j = i + 1; j < N; j++) {
            result[i][j] = MAX(result[i][j - 1], result[i + 1][j]);
            int pair = i + 1 < j ? base[i] + base[j] == 3 : 0;
            result[i][j] = MAX(result[i][j], result[i + 1][j - 1] + pair);
            for (int k = i + 1; k < j; k++) result[i][j] = MAX(result[i][j], result[i][k] + result[k + 1][j]);
        }
}
