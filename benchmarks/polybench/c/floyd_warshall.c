#include "kernel.h"

void kernel(double d[restrict N][N]) {
    for (int k = 0; k < N; k++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) d[i][j] = MIN(d[i][j], d[i][k] + d[k][j]);
}
